package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"cftune/internal/regular"
)

// An index file: magic; length of the header; header (JSON); number of entries; of each entry row, offset, line and
// sum; CRC-32 of all before it. Integers are 64 bits, little-endian, the last CRC 32.
const indexMagic = "CFTROWS2"

// errBadIndex is returned for an index that cannot be used; it is made again.
var errBadIndex = errors.New("damaged index")

func encodeIndex(h header, entries []entry) ([]byte, error) {
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	out := append([]byte(indexMagic), make([]byte, 0, 32+len(head)+32*len(entries))...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(head)))
	out = append(out, head...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(entries)))
	for _, e := range entries {
		for _, v := range []int64{e.row, e.offset, e.line, int64(e.sum)} {
			out = binary.LittleEndian.AppendUint64(out, uint64(v))
		}
	}
	return binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out)), nil
}

// readIndex reads an index and checks that it is whole and makes sense.
func readIndex(path string) (h header, entries []entry, err error) {
	text, err := regular.ReadFile(path)
	if err != nil {
		return header{}, nil, err
	}
	fail := func(what string) (header, []entry, error) {
		return header{}, nil, fmt.Errorf("%s: %w: %s", path, errBadIndex, what)
	}
	if len(text) < len(indexMagic)+20 || string(text[:len(indexMagic)]) != indexMagic {
		return fail("it does not start with " + indexMagic)
	}
	body, sum := text[:len(text)-4], binary.LittleEndian.Uint32(text[len(text)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return fail("its checksum differs")
	}
	body = body[len(indexMagic):]
	n := binary.LittleEndian.Uint64(body)
	body = body[8:]
	if n > uint64(len(body))-8 || json.Unmarshal(body[:n], &h) != nil {
		return fail("its header")
	}
	count := binary.LittleEndian.Uint64(body[n:])
	body = body[n+8:]
	if count != uint64(len(body))/32 || len(body)%32 != 0 {
		return fail("its length")
	}
	last := entry{row: -1, offset: -1}
	for ; len(body) > 0; body = body[32:] {
		e := entry{
			int64(binary.LittleEndian.Uint64(body)), int64(binary.LittleEndian.Uint64(body[8:])), int64(binary.LittleEndian.Uint64(body[16:])),
			uint32(binary.LittleEndian.Uint64(body[24:])),
		}
		if e.row <= last.row || e.offset <= last.offset || e.row >= h.Rows || e.offset >= h.Bytes {
			return fail("its entries")
		}
		entries, last = append(entries, e), e
	}
	if h.Rows < 0 || (h.Rows > 0) != (len(entries) > 0) || h.Rows > 0 && entries[0].row != 0 {
		return fail("its rows")
	}
	return h, entries, nil
}
