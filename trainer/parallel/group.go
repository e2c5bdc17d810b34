package parallel

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"fmt"
)

// Group is what the processes have in common. All make the same calls in the same order.
type Group interface {
	Rank() int
	Size() int
	// Broadcast copies rank 0's data to everybody's, which is as long.
	Broadcast(data []byte) error
	// Gather returns everybody's data, by rank; all are as long.
	Gather(mine []byte) ([]byte, error)
	// Sum replaces data by the sums over all ranks, to the same bits on every rank and in every run.
	Sum(data []float32) error
}

// maxMessage bounds what a rank believes about a message's length, in bytes.
const maxMessage = 1 << 36

// Share gives rank 0's value to everybody: the others' is overwritten.
func Share(g Group, value any) error {
	var text bytes.Buffer
	var length [8]byte
	if g.Rank() == 0 {
		if err := gob.NewEncoder(&text).Encode(value); err != nil {
			return fmt.Errorf("share %T: %w", value, err)
		}
		binary.LittleEndian.PutUint64(length[:], uint64(text.Len()))
	}
	if err := g.Broadcast(length[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxMessage {
		return fmt.Errorf("share %T: rank 0 announces %d bytes", value, n)
	}
	data := text.Bytes()
	if g.Rank() != 0 {
		data = make([]byte, n)
	}
	if err := g.Broadcast(data); err != nil {
		return err
	}
	if g.Rank() == 0 {
		return nil
	}
	if err := gob.NewDecoder(bytes.NewReader(data)).Decode(value); err != nil {
		return fmt.Errorf("share %T: %w", value, err)
	}
	return nil
}

// collect returns everybody's value, by rank.
func collect[T any](g Group, mine T) ([]T, error) {
	var text bytes.Buffer
	if err := gob.NewEncoder(&text).Encode(mine); err != nil {
		return nil, fmt.Errorf("collect %T: %w", mine, err)
	}
	lengths, err := g.Gather(binary.LittleEndian.AppendUint64(nil, uint64(text.Len())))
	if err != nil {
		return nil, err
	}
	longest := uint64(0)
	for r := range g.Size() {
		longest = max(longest, binary.LittleEndian.Uint64(lengths[8*r:]))
	}
	if longest > maxMessage {
		return nil, fmt.Errorf("collect %T: a rank announces %d bytes", mine, longest)
	}
	padded := make([]byte, longest)
	copy(padded, text.Bytes())
	all, err := g.Gather(padded)
	if err != nil {
		return nil, err
	}
	values := make([]T, g.Size())
	for r := range values {
		if err := gob.NewDecoder(bytes.NewReader(all[uint64(r)*longest:][:longest])).Decode(&values[r]); err != nil {
			return nil, fmt.Errorf("collect %T of rank %d: %w", mine, r, err)
		}
	}
	return values, nil
}
