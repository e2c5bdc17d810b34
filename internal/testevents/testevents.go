// Package testevents reads TensorBoard's event files for tests. It shares nothing with what writes them: frames, checksums and
// messages are taken apart here by hand, from TensorFlow's record_writer.h, event.proto, summary.proto and tensor.proto.
package testevents

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Event is one record.
type Event struct {
	WallTime float64
	Step     int64
	Version  string // of the file
	Start    bool   // of a session
	Scalars  map[string]float32
	Texts    map[string]string
}

// ErrTorn says that a file ends within a record.
var ErrTorn = errors.New("cut off")

// ErrChecksum says that a record's checksum is wrong.
var ErrChecksum = errors.New("checksum differs")

// File reads an event file. With an error come the events before it.
func File(path string) ([]Event, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var events []Event
	for len(data) > 0 {
		record, rest, err := frame(data)
		if err != nil {
			return events, fmt.Errorf("%s: record %d: %w", path, len(events)+1, err)
		}
		e := Event{Scalars: map[string]float32{}, Texts: map[string]string{}}
		if err := e.read(record); err != nil {
			return events, fmt.Errorf("%s: record %d: %w", path, len(events)+1, err)
		}
		events, data = append(events, e), rest
	}
	return events, nil
}

func unmask(crc uint32) uint32 {
	crc -= 0xa282ead8
	return crc>>17 | crc<<15
}

// frame takes the first record off.
func frame(data []byte) (record, rest []byte, err error) {
	table := crc32.MakeTable(crc32.Castagnoli)
	if len(data) < 12 {
		return nil, nil, ErrTorn
	}
	if unmask(binary.LittleEndian.Uint32(data[8:])) != crc32.Checksum(data[:8], table) {
		return nil, nil, fmt.Errorf("length: %w", ErrChecksum)
	}
	n := binary.LittleEndian.Uint64(data)
	data = data[12:]
	if n > math.MaxInt64-4 || uint64(len(data)) < n+4 {
		return nil, nil, ErrTorn
	}
	record, rest = data[:n], data[n+4:]
	if unmask(binary.LittleEndian.Uint32(data[n:])) != crc32.Checksum(record, table) {
		return nil, nil, fmt.Errorf("data: %w", ErrChecksum)
	}
	return record, rest, nil
}

// field is one of a message: of wire type 0 (a number), 1 (8 bytes), 2 (bytes) or 5 (4 bytes).
type field struct {
	number int
	value  uint64
	bytes  []byte
}

// fields takes a message apart.
func fields(b []byte, visit func(field) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return errors.New("no tag")
		}
		b = b[n:]
		f := field{number: int(tag >> 3)}
		size := 0
		switch tag & 7 {
		case 0:
			if f.value, size = binary.Uvarint(b); size <= 0 {
				return errors.New("no number")
			}
		case 1:
			if size = 8; len(b) >= size {
				f.value = binary.LittleEndian.Uint64(b)
			}
		case 2:
			length, n := binary.Uvarint(b)
			if n <= 0 || length > uint64(len(b)-n) {
				return errors.New("no length")
			}
			size = n + int(length)
			f.bytes = b[n:size]
		case 5:
			if size = 4; len(b) >= size {
				f.value = uint64(binary.LittleEndian.Uint32(b))
			}
		default:
			return fmt.Errorf("wire type %d", tag&7)
		}
		if size > len(b) {
			return errors.New("a field is cut off")
		}
		b = b[size:]
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

func (e *Event) read(record []byte) error {
	return fields(record, func(f field) error {
		switch f.number {
		case 1:
			e.WallTime = math.Float64frombits(f.value)
		case 2:
			e.Step = int64(f.value)
		case 3:
			e.Version = string(f.bytes)
		case 5:
			return fields(f.bytes, func(f field) error { return e.readValue(f.bytes) })
		case 7:
			return fields(f.bytes, func(f field) error {
				e.Start = f.number == 1 && f.value == 1
				return nil
			})
		default:
			return fmt.Errorf("field %d of an event", f.number)
		}
		return nil
	})
}

// readValue reads a Summary.Value: a scalar, or a text as its plugin wants it.
func (e *Event) readValue(b []byte) error {
	var tag, text, plugin string
	var scalar *float32
	err := fields(b, func(f field) error {
		switch f.number {
		case 1:
			tag = string(f.bytes)
		case 2:
			v := math.Float32frombits(uint32(f.value))
			scalar = &v
		case 8:
			return readTensor(f.bytes, &text)
		case 9:
			return fields(f.bytes, func(f field) error {
				if f.number != 1 {
					return nil
				}
				return fields(f.bytes, func(f field) error {
					plugin = string(f.bytes)
					return nil
				})
			})
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case tag == "":
		return errors.New("a value has no tag")
	case scalar != nil:
		e.Scalars[tag] = *scalar
	case plugin == "text":
		e.Texts[tag] = text
	default:
		return fmt.Errorf("%s is neither a scalar nor a text", tag)
	}
	return nil
}

func readTensor(b []byte, text *string) error {
	kind := uint64(0)
	err := fields(b, func(f field) error {
		switch f.number {
		case 1:
			kind = f.value
		case 8:
			*text += string(f.bytes)
		}
		return nil
	})
	if err == nil && kind != 7 {
		err = fmt.Errorf("a tensor of type %d, not of strings", kind)
	}
	return err
}

// Point is a scalar at a step.
type Point struct {
	Step  int64
	Value float32
}

// Folder returns the scalars of a folder as TensorBoard shows them: files in the order of their names, and a session's start
// forgets what lay at its step and beyond. A last record that is cut off does not count.
func Folder(dir string) (map[string][]Point, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	scalars := map[string][]Point{}
	for _, entry := range entries {
		if !strings.Contains(entry.Name(), "tfevents") {
			continue
		}
		events, err := File(filepath.Join(dir, entry.Name()))
		if err != nil && !errors.Is(err, ErrTorn) {
			return nil, err
		}
		for _, e := range events {
			if e.Start {
				for tag, points := range scalars {
					scalars[tag] = slices.DeleteFunc(points, func(p Point) bool { return p.Step >= e.Step })
				}
			}
			for tag, v := range e.Scalars {
				scalars[tag] = append(scalars[tag], Point{e.Step, v})
			}
		}
	}
	return scalars, nil
}
