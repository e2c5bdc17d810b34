package metrics

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cftune/internal/regular"
)

// Visitor is told what a Follower reads, in the order of the file.
type Visitor interface {
	// Restart says that all records so far are void: the file is another one, as after a resume that took some off.
	Restart()
	Step(s Step)
	Validation(v Validation)
	Skip(s Skip)
}

// Follower reads a file of records while somebody else writes it. It reads each part once, opens the file only to read,
// and does not keep it open. Unlike Check it goes on after a line that is damaged, and counts it.
type Follower struct {
	path string

	info   os.FileInfo // at the last look; nil before the first
	offset int64       // of the first byte that is not read yet
	before []byte      // what the file has right before the offset
	number int         // of lines read
	step   int         // the last one
	pace   pace

	torn    bool
	damaged int
	problem string
}

const (
	// maxLineBytes bounds a line; only skips are long, by their examples' names.
	maxLineBytes = 8 << 20
	// rememberedBytes before the offset tell whether it is still the same file.
	rememberedBytes = 128
	readBytes       = 256 << 10
)

// Follow begins to follow the file at path, which need not be there yet.
func Follow(path string) *Follower { return &Follower{path: path} }

// Torn reports whether the last line is cut off: it is being written, or its writer died.
func (f *Follower) Torn() bool { return f.torn }

// Damaged returns how many lines are no records or not in order, and what is wrong with the first.
func (f *Follower) Damaged() (lines int, problem string) { return f.damaged, f.problem }

// Offset is how many bytes were read and understood.
func (f *Follower) Offset() int64 { return f.offset }

// SecondsPerStep is the smoothed time of a step, validations and checkpoints included; 0 before the first step.
func (f *Follower) SecondsPerStep() float64 { return f.pace.perStep }

// Modified is when the file was written last; zero if there is none.
func (f *Follower) Modified() time.Time {
	if f.info == nil {
		return time.Time{}
	}
	return f.info.ModTime()
}

// Read tells the visitor what is new, and reports whether anything is. An error is of the disk.
func (f *Follower) Read(v Visitor) (changed bool, err error) {
	file, err := regular.Open(f.path)
	if errors.Is(err, os.ErrNotExist) {
		if f.info == nil {
			return false, nil
		}
		f.restart(v)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow metrics: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("follow metrics: %w", err)
	}
	if f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() && f.info.ModTime().Equal(info.ModTime()) {
		return false, nil
	}
	if f.info != nil && !f.goesOn(file, info) {
		f.restart(v)
	}
	f.info = info
	again, err := f.readOn(file, info.Size(), v)
	if again {
		f.restart(v)
		f.info = info
		_, err = f.readOn(file, info.Size(), v)
	}
	if err != nil {
		return true, fmt.Errorf("follow metrics %s: %w", f.path, err)
	}
	return true, nil
}

func (f *Follower) restart(v Visitor) {
	*f = Follower{path: f.path}
	v.Restart()
}

// goesOn reports whether the file begins with what was read of it.
func (f *Follower) goesOn(file *os.File, info os.FileInfo) bool {
	if !os.SameFile(f.info, info) || info.Size() < f.offset {
		return false
	}
	is := make([]byte, len(f.before))
	_, err := file.ReadAt(is, f.offset-int64(len(is)))
	return err == nil && bytes.Equal(is, f.before)
}

// readOn reads whole lines up to a size of the file. again: a step came that was there before, so the file was cut and
// went on since the last look, and must be read from its start.
func (f *Follower) readOn(file *os.File, size int64, v Visitor) (again bool, err error) {
	first, from := f.offset == 0, f.offset
	r := bufio.NewReaderSize(io.NewSectionReader(file, from, size-from), readBytes)
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if len(long) <= maxLineBytes { // what is longer is damaged anyway
				long = append(long, part...)
			}
			from += int64(len(part))
			continue
		}
		if errors.Is(err, io.EOF) {
			f.torn = len(part)+len(long) > 0
			return false, nil
		}
		if err != nil {
			return false, err
		}
		from += int64(len(part))
		line := part
		if long != nil {
			line = append(long, part...)
			long = nil
		}
		f.number++
		if !f.visit(line, v) && !first {
			return true, nil
		}
		f.offset = from
		f.before = append(f.before[:0], line[max(0, len(line)-rememberedBytes):]...)
	}
}

// visit shows one line. It returns false for a step that is not after the last one.
func (f *Follower) visit(line []byte, v Visitor) bool {
	if len(line) > maxLineBytes {
		f.damage(fmt.Errorf("it is longer than %d bytes", maxLineBytes))
		return true
	}
	record, err := parseRecord(line[:len(line)-1])
	if err != nil {
		f.damage(err)
		return true
	}
	switch r := record.(type) {
	case Step:
		return f.visitStep(r, v)
	case Validation:
		v.Validation(r)
	case Skip:
		v.Skip(r)
	}
	return true
}

func (f *Follower) visitStep(s Step, v Visitor) bool {
	if s.Step != f.step+1 {
		f.damage(fmt.Errorf("step %d follows step %d", s.Step, f.step))
		if s.Step <= f.step {
			return false
		}
	}
	f.step = s.Step
	// While a run is stopped no step is made: the pause is none of its pace.
	if gap := s.Time.Sub(f.pace.last).Seconds(); gap > maxPauseSeconds+10*s.Seconds || gap < 0 {
		f.pace.last = time.Time{}
	}
	f.pace.left(s)
	v.Step(s)
	return true
}

// maxPauseSeconds between two steps are for validation and checkpoints.
const maxPauseSeconds = 600

func (f *Follower) damage(err error) {
	f.damaged++
	if f.problem == "" {
		f.problem = fmt.Sprintf("line %d: %v", f.number, err)
	}
}
