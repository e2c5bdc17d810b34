package gguf

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
)

// The keys by which a shard says what it is (llama.cpp's gguf-split).
const (
	keyShard        = "split.no" // from 0
	keyShards       = "split.count"
	keyShardTensors = "split.tensors.count" // of all shards
)

// shardSuffix is how the name of shard i, from 0, of a model ends.
func shardSuffix(i, count uint64) string { return fmt.Sprintf("-%05d-of-%05d.gguf", i+1, count) }

// openShards reads the other shards of a model of which f is the first; f may be a model's only file.
func (f *File) openShards() error {
	count, _ := f.Uint(keyShards)
	if count <= 1 {
		return nil
	}
	number, _ := f.Uint(keyShard)
	prefix, named := strings.CutSuffix(f.Path, shardSuffix(number, count))
	switch {
	case count > math.MaxUint16 || number >= count:
		return bad("it says that it is shard %d of %d", number+1, count)
	case !named:
		return bad("it is shard %d of %d: its name should end in %s", number+1, count, shardSuffix(number, count))
	case number != 0:
		return bad("it is shard %d of %d: name the first one, %s", number+1, count, prefix+shardSuffix(0, count))
	}
	names := make(map[string]bool, len(f.Tensors))
	for _, t := range f.Tensors {
		names[t.Name] = true
	}
	for i := uint64(1); i < count; i++ {
		if err := f.addShard(prefix+shardSuffix(i, count), i, count, names); err != nil {
			return err
		}
	}
	if want, ok := f.Uint(keyShardTensors); ok && want != uint64(len(f.Tensors)) {
		return bad("its shards have %d tensors, %s says %d", len(f.Tensors), keyShardTensors, want)
	}
	return nil
}

func (f *File) addShard(path string, i, count uint64, names map[string]bool) error {
	one, err := openOne(path)
	if errors.Is(err, fs.ErrNotExist) {
		return bad("shard %d of %d is missing: %s", i+1, count, path)
	}
	if err != nil {
		return err
	}
	number, _ := one.Uint(keyShard)
	if of, _ := one.Uint(keyShards); number != i || of != count {
		return bad("%s says that it is shard %d of %d", path, number+1, of)
	}
	for _, t := range one.Tensors {
		if names[t.Name] {
			return bad("tensor %q is in several shards", t.Name)
		}
		names[t.Name] = true
		t.Shard = int(i)
		f.Tensors = append(f.Tensors, t)
	}
	f.Shards = append(f.Shards, path)
	f.opened = append(f.opened, one.opened...)
	f.Size += one.Size
	return nil
}

// aboutShards reports whether a metadata key says how a model is divided.
func aboutShards(key string) bool {
	return key == keyShard || key == keyShards || key == keyShardTensors
}
