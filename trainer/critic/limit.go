package critic

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// bucket bounds a rate per minute. It lets through at once what a tenth of a minute may have, and then as much as drips
// in; a request larger than that waits until the bucket is full and leaves a debt.
type bucket struct {
	mu        sync.Mutex
	perSecond float64 // 0 = no bound
	capacity  float64
	level     float64
	last      time.Time
}

func newBucket(perMinute int) *bucket {
	b := &bucket{perSecond: float64(perMinute) / 60, capacity: max(1, float64(perMinute)/10)}
	b.level, b.last = b.capacity, time.Now()
	return b
}

// take waits until n may pass.
func (b *bucket) take(ctx context.Context, n float64) error {
	if b.perSecond == 0 {
		return ctx.Err()
	}
	for {
		b.mu.Lock()
		now := time.Now()
		b.level = min(b.capacity, b.level+now.Sub(b.last).Seconds()*b.perSecond)
		b.last = now
		missing := min(n, b.capacity) - b.level
		if missing <= 0 {
			b.level -= n
		}
		b.mu.Unlock()
		if missing <= 0 {
			return nil
		}
		if err := sleep(ctx, time.Duration(missing/b.perSecond*float64(time.Second))+time.Millisecond); err != nil {
			return err
		}
	}
}

// giveBack returns what was taken too much.
func (b *bucket) giveBack(n float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.level = min(b.capacity, b.level+n)
}

// pause is a time before which nothing is sent, for all requests to a teacher: it has asked for it.
type pause struct {
	mu    sync.Mutex
	until time.Time
}

// extend reports whether nothing was paused before.
func (p *pause) extend(d time.Duration) (begins bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	begins = !p.until.After(now)
	if t := now.Add(d); t.After(p.until) {
		p.until = t
	}
	return begins
}

func (p *pause) wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		left := time.Until(p.until)
		p.mu.Unlock()
		if left <= 0 {
			return ctx.Err()
		}
		if err := sleep(ctx, left); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Backoff is how long to wait before a request is tried again.
type Backoff struct {
	First, Most time.Duration
}

// delay doubles with each attempt, from 1; the upper half of it is random, so that requests that failed together do not
// come again together.
func (b Backoff) delay(attempt int) time.Duration {
	d := b.Most
	if attempt < 32 {
		d = min(d, b.First<<(attempt-1))
	}
	if d <= 0 { // shifted out
		d = b.Most
	}
	return d/2 + time.Duration(rand.Int64N(int64(d/2)+1))
}

// longestRetryAfter bounds what an endpoint may ask for: beyond it, the request is tried again sooner or given up.
const longestRetryAfter = 10 * time.Minute

// RetryAfter reads the header of that name, seconds or a date, or before it Retry-After-Ms, in which OpenAI and Azure say it more exactly.
// 0 = there is none, or it makes no sense.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms >= 0 {
		return min(longestRetryAfter, time.Duration(min(ms, 1e9)*float64(time.Millisecond)))
	}
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds >= 0 {
		return min(longestRetryAfter, time.Duration(min(seconds, 1e6)*float64(time.Second)))
	}
	if at, err := http.ParseTime(text); err == nil {
		if said, err := http.ParseTime(h.Get("Date")); err == nil {
			now = said // by the endpoint's clock, as the other date is
		}
		return max(0, min(longestRetryAfter, at.Sub(now)))
	}
	return 0
}
