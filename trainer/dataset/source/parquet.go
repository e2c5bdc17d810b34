package source

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
)

const (
	// parquetBuffer is what is read of a column at a time.
	parquetBuffer = 32 << 10
	// cursorValues is how many values of a column are decoded at a time.
	cursorValues = 128
)

// readParquet emits the rows of the row groups one after another. It keeps a page of each column.
func readParquet(ctx context.Context, at place, yield emit) error {
	r, size, err := at.openAt(ctx)
	if err != nil {
		return err
	}
	defer r.Close() // it was only read
	file, err := openParquet(r, size)
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	root, columns, err := newTree(file)
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	if err := checkChunks(file); err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	if remote, ok := r.(interface{ readInStreams(n int) }); ok {
		remote.readInStreams(columns)
	}
	done := 0
	for _, group := range file.RowGroups() {
		if err := readGroup(ctx, group, root, columns, &done, yield); err != nil {
			return err
		}
	}
	if int64(done) != file.NumRows() {
		return fmt.Errorf("parquet: the file has %d rows, and says that it has %d", done, file.NumRows())
	}
	return nil
}

// openParquet reads the footer.
func openParquet(r io.ReaderAt, size int64) (file *parquet.File, err error) {
	defer recoverDamage(&err)
	if err := checkFooter(r, size); err != nil {
		return nil, err
	}
	return parquet.OpenFile(r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true), parquet.ReadBufferSize(parquetBuffer))
}

// checkFooter makes sure that the footer lies within the file: the library takes the memory that its length claims.
func checkFooter(r io.ReaderAt, size int64) error {
	const magics = 2*4 + 4 // at both ends, and the length before the last one
	var end [8]byte
	if size < magics {
		return fmt.Errorf("the file is cut off: it has %d bytes", size)
	}
	if _, err := r.ReadAt(end[:], size-int64(len(end))); err != nil {
		return err
	}
	if string(end[4:]) != "PAR1" {
		return errors.New("the file is cut off: it does not end with PAR1")
	}
	if footer := int64(binary.LittleEndian.Uint32(end[:])); footer > size-magics {
		return fmt.Errorf("the file is damaged: its footer of %d bytes does not lie within it", footer)
	}
	return nil
}

// recoverDamage makes an error of a panic: of the library, over a file that is damaged in a way it does not expect.
func recoverDamage(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the file is damaged: %v", p)
	}
}

// readGroup emits the rows of a row group; done counts them.
func readGroup(ctx context.Context, group parquet.RowGroup, root *node, columns int, done *int, yield emit) (err error) {
	t := &table{cursors: make([]cursor, columns)}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.open(group); err != nil {
		return rowErrorf(*done+1, "parquet: %w", err)
	}
	var text []byte
	for range group.NumRows() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		*done++
		if text, err = t.appendRow(text[:0], root); err != nil {
			return &rowError{*done, err}
		}
		if len(text) > MaxRowBytes {
			return rowErrorf(*done, "the row is %w", errFull)
		}
		if !yield(Row{Text: text, Line: *done, Offset: -1}, nil) {
			return errStopped
		}
	}
	for i := range t.cursors {
		if !t.cursors[i].ended {
			return rowErrorf(*done, "parquet: the row group has more values than rows")
		}
	}
	return nil
}

// table is a row group being read.
type table struct{ cursors []cursor }

func (t *table) open(group parquet.RowGroup) (err error) {
	defer recoverDamage(&err)
	for i, chunk := range group.ColumnChunks() {
		c := &t.cursors[i]
		c.pages = chunk.Pages()
		c.buf = make([]parquet.Value, cursorValues)
		if err := c.load(); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) close() (err error) {
	defer recoverDamage(&err)
	for i := range t.cursors {
		if c := &t.cursors[i]; c.pages != nil {
			parquet.Release(c.page)
			err = errors.Join(err, c.pages.Close())
		}
	}
	return err
}

// appendRow appends the next row, and checks that all columns are at the start of the one after it.
func (t *table) appendRow(text []byte, root *node) (_ []byte, err error) {
	defer recoverDamage(&err)
	if text, err = root.append(text, t.cursors); err != nil {
		return text, err
	}
	for i := range t.cursors {
		if c := &t.cursors[i]; !c.ended && c.repetition() != 0 {
			return text, errors.New("parquet: the columns disagree where the row ends")
		}
	}
	return text, nil
}

// cursor is a place among the values of a column chunk. Values keep their bytes until the cursor goes on.
type cursor struct {
	pages  parquet.Pages
	page   parquet.Page
	values parquet.ValueReader
	buf    []parquet.Value
	at, n  int
	ended  bool
}

// load decodes more values, of the next page if need be.
func (c *cursor) load() error {
	for {
		if c.values != nil {
			n, err := c.values.ReadValues(c.buf)
			if err != nil && err != io.EOF {
				return err
			}
			if err == io.EOF {
				c.values = nil
			}
			if n > 0 {
				c.at, c.n = 0, n
				return nil
			}
			if err == nil {
				return io.ErrNoProgress
			}
		}
		parquet.Release(c.page)
		c.page = nil
		page, err := c.pages.ReadPage()
		if err == io.EOF {
			c.at, c.n, c.ended = 0, 0, true
			return nil
		}
		if err != nil {
			return err
		}
		c.page, c.values = page, page.Values()
	}
}

func (c *cursor) repetition() int { return c.buf[c.at].RepetitionLevel() }
func (c *cursor) definition() int { return c.buf[c.at].DefinitionLevel() }

// next passes over a value.
func (c *cursor) next() error {
	if c.at++; c.at < c.n {
		return nil
	}
	return c.load()
}
