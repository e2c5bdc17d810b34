package trainer

import (
	"sync"
	"sync/atomic"
	"time"
)

// lookingEvery is how often it is told how far a look at all records is.
var lookingEvery = 10 * time.Second

// lookout tells how far a look at many records is, and how long the rest may take. Several may tell it at once; nil tells nobody.
type lookout struct {
	tell  func(done, total int, left time.Duration)
	total int
	began time.Time
	done  atomic.Int64
	mu    sync.Mutex
	next  time.Time
}

// newLookout begins; tell may be nil.
func newLookout(tell func(done, total int, left time.Duration), total int) *lookout {
	if tell == nil {
		return nil
	}
	now := time.Now()
	return &lookout{tell: tell, total: total, began: now, next: now.Add(lookingEvery)}
}

// lookedRecords is after how many records the time is looked at.
const lookedRecords = 256

// looked counts one more record.
func (l *lookout) looked() {
	if l == nil {
		return
	}
	if done := l.done.Add(1); done%lookedRecords == 0 {
		l.at(int(done))
	}
}

// at says that so many are done.
func (l *lookout) at(done int) {
	if l == nil || done == 0 || !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.next) {
		return
	}
	l.next = now.Add(lookingEvery)
	total := max(l.total, done)
	l.tell(done, total, time.Duration(float64(now.Sub(l.began))/float64(done)*float64(total-done)))
}
