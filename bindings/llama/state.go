package llama

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A state file has this magic, a version, the number of tokens and bytes (64 bits each, little end first), the tokens, the
// bytes of llama.cpp's state, and the SHA-256 of everything before.
const (
	stateMagic   = "CFTSTATE"
	stateVersion = 1
)

// SaveState writes what was read so far, and the state of the model after it, to a file.
func (l *LLama) SaveState(dst string) error {
	give, err := l.take(context.Background())
	if err != nil {
		return err
	}
	defer give()
	state, err := l.session.ReadState()
	if err != nil {
		return fmt.Errorf("llama: save state: %w", err)
	}
	var b bytes.Buffer
	b.WriteString(stateMagic)
	for _, n := range []uint64{stateVersion, uint64(len(l.tokens)), uint64(len(state))} {
		b.Write(binary.LittleEndian.AppendUint64(nil, n))
	}
	for _, token := range l.tokens {
		b.Write(binary.LittleEndian.AppendUint32(nil, uint32(token)))
	}
	b.Write(state)
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	temp := dst + ".tmp"
	if err := writeSynced(temp, b.Bytes()); err != nil {
		return errors.Join(fmt.Errorf("llama: save state: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, dst); err != nil {
		return fmt.Errorf("llama: save state: %w", err)
	}
	return nil
}

func writeSynced(path string, content []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// LoadState takes up what SaveState wrote, with the same model and context. A prompt that begins with what was read then
// needs only its rest to be read.
func (l *LLama) LoadState(state string) error {
	give, err := l.take(context.Background())
	if err != nil {
		return err
	}
	defer give()
	fail := func(err error) error { return fmt.Errorf("llama: load state %s: %w", state, err) }
	tokens, native, err := l.readState(state)
	if err != nil {
		return fail(err)
	}
	l.tokens = nil
	if err := l.session.WriteState(native); err != nil {
		return fail(errors.Join(err, l.session.Forget(-1)))
	}
	l.tokens = tokens
	return nil
}

func (l *LLama) readState(path string) (tokens []int32, native []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, err
	}
	const head = len(stateMagic) + 3*8
	if len(content) < head+sha256.Size || string(content[:len(stateMagic)]) != stateMagic {
		return nil, nil, errors.New("it is no state file")
	}
	body, sum := content[:len(content)-sha256.Size], content[len(content)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], sum) {
		return nil, nil, errors.New("it is damaged: its checksum differs")
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(content[len(stateMagic)+8*i:]) }
	if version := number(0); version != stateVersion {
		return nil, nil, fmt.Errorf("version %d is not %d", version, stateVersion)
	}
	n, size := number(1), number(2)
	rest := body[head:]
	if n > uint64(l.options.ContextSize) || 4*n+size != uint64(len(rest)) || size > uint64(len(rest)) {
		return nil, nil, fmt.Errorf("it has %d tokens and %d bytes, which do not fit this context", n, size)
	}
	for i := range n {
		token := int32(binary.LittleEndian.Uint32(rest[4*i:]))
		if token < 0 || int(token) >= len(l.logits) {
			return nil, nil, fmt.Errorf("token %d is not in the vocabulary of %d", token, len(l.logits))
		}
		tokens = append(tokens, token)
	}
	return tokens, rest[4*n:], nil
}
