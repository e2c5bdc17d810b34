package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// entry says where a block begins: its first row, its place in the file, and the source's line of its first row (of plain
// files: of its first byte).
type entry struct {
	row, offset, line int64
	sum               uint32 // CRC-32 of a plain file's block: anyone may write to it while it is read
}

// header is what an index says of a file.
type header struct {
	Name   string `json:"name"`
	Stamp  string `json:"stamp"`
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"` // of the file that the offsets are of
	Plain  bool   `json:"plain"`
	Digest string `json:"digest"` // SHA-256: of a plain file's bytes, else of the rows, each with a newline
}

// Table is an open file's rows. Its methods but Close are safe for concurrent use.
type Table struct {
	header  header
	entries []entry
	f       *os.File
	path    string
	remove  []string // at Close: what nobody will find again
	decoder *zstd.Decoder

	mu     sync.Mutex
	recent []*block // most recent last
}

// block is unpacked rows.
type block struct {
	at    int // in entries
	rows  [][]byte
	lines []int
}

// keptBlocks is how many blocks stay unpacked: enough for readers in order, one for each core.
const keptBlocks = 32

// Len returns the number of rows.
func (t *Table) Len() int { return int(t.header.Rows) }

// Digest returns the content's SHA-256, as hex.
func (t *Table) Digest() string { return t.header.Digest }

// Close closes the file.
func (t *Table) Close() error {
	if t.decoder != nil {
		t.decoder.Close()
	}
	errs := []error{t.f.Close()}
	for _, path := range t.remove {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// Row returns row i, from 0, and the line that messages name. The text is not to be written to.
func (t *Table) Row(i int) (text []byte, line int, err error) {
	if i < 0 || int64(i) >= t.header.Rows {
		panic(fmt.Sprintf("store: row %d of %d", i, t.header.Rows))
	}
	at, _ := slices.BinarySearchFunc(t.entries, int64(i)+1, func(e entry, row int64) int { return int(min(1, max(-1, e.row-row))) })
	at--
	b, err := t.block(at)
	if err != nil {
		return nil, 0, err
	}
	k := i - int(t.entries[at].row)
	if k >= len(b.rows) {
		return nil, 0, t.damaged("a block has %d rows, and should have row %d", len(b.rows), k)
	}
	return b.rows[k], b.lines[k], nil
}

func (t *Table) damaged(format string, args ...any) error {
	if t.header.Plain {
		return fmt.Errorf("%s has changed since it was indexed: %s", t.header.Name, fmt.Sprintf(format, args...))
	}
	return fmt.Errorf("the cached rows of %s are damaged (%s); remove %s, and they are made again", t.header.Name, fmt.Sprintf(format, args...), t.path)
}

// block returns a block, from memory if it was read a moment ago.
func (t *Table) block(at int) (*block, error) {
	t.mu.Lock()
	for i, b := range t.recent {
		if b.at == at {
			t.recent = append(append(t.recent[:i], t.recent[i+1:]...), b)
			t.mu.Unlock()
			return b, nil
		}
	}
	t.mu.Unlock()
	b, err := t.read(at)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.recent) >= keptBlocks {
		t.recent = append(t.recent[:0], t.recent[1:]...)
	}
	t.recent = append(t.recent, b)
	return b, nil
}

func (t *Table) read(at int) (*block, error) {
	end := t.header.Bytes
	if at+1 < len(t.entries) {
		end = t.entries[at+1].offset
	}
	e := t.entries[at]
	raw := make([]byte, end-e.offset)
	if _, err := t.f.ReadAt(raw, e.offset); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, t.damaged("it is shorter")
		}
		return nil, fmt.Errorf("read rows of %s: %w", t.header.Name, err)
	}
	b := &block{at: at}
	if t.header.Plain {
		if crc32.ChecksumIEEE(raw) != e.sum {
			return nil, t.damaged("its lines from %d on are others", e.line)
		}
		b.splitLines(raw, int(e.line))
		return b, nil
	}
	text, err := t.decoder.DecodeAll(raw, nil)
	if err != nil {
		return nil, t.damaged("%v", err)
	}
	if !b.splitPacked(text, int(e.line)) {
		return nil, t.damaged("a block's rows are cut off")
	}
	return b, nil
}

// splitLines takes the lines that are not blank.
func (b *block) splitLines(text []byte, line int) {
	for len(text) > 0 {
		row := text
		if end := bytes.IndexByte(text, '\n'); end >= 0 {
			row, text = text[:end], text[end+1:]
		} else {
			text = nil
		}
		if row = bytes.TrimSpace(row); len(row) > 0 {
			b.rows, b.lines = append(b.rows, row), append(b.lines, line)
		}
		line++
	}
}

// splitPacked takes rows as packer writes them: lines since the row before, length, text.
func (b *block) splitPacked(text []byte, line int) bool {
	for len(text) > 0 {
		lines, n := binary.Uvarint(text)
		if n <= 0 {
			return false
		}
		length, m := binary.Uvarint(text[n:])
		if m <= 0 || length > uint64(len(text)-n-m) {
			return false
		}
		text = text[n+m:]
		line += int(lines)
		b.rows, b.lines = append(b.rows, text[:length:length]), append(b.lines, line)
		text = text[length:]
	}
	return true
}

// packer writes rows to blocks.
type packer struct {
	out     *bufio.Writer
	encoder *zstd.Encoder
	header  header
	entries []entry
	text    []byte // of the block that is filled
	line    int64  // of its last row
	packed  []byte
}

// blockBytes is how much text a block has at least: what one random read unpacks.
const blockBytes = 32 << 10

func (p *packer) add(row []byte, line int64) error {
	if len(p.text) == 0 {
		p.entries = append(p.entries, entry{row: p.header.Rows, offset: p.header.Bytes, line: line})
		p.line = line
	}
	p.text = binary.AppendUvarint(p.text, uint64(line-p.line))
	p.text = binary.AppendUvarint(p.text, uint64(len(row)))
	p.text = append(p.text, row...)
	p.line = line
	p.header.Rows++
	if len(p.text) >= blockBytes {
		return p.flush()
	}
	return nil
}

func (p *packer) flush() error {
	if len(p.text) == 0 {
		return nil
	}
	p.packed = p.encoder.EncodeAll(p.text, p.packed[:0])
	p.text = p.text[:0]
	p.header.Bytes += int64(len(p.packed))
	_, err := p.out.Write(p.packed)
	return err
}
