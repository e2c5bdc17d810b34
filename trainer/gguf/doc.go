// Package gguf reads the metadata of GGUF files and reads and writes LoRA adapters: GGUF files and PEFT folders.
//
// Whatever a file says about sizes is checked against the file before memory is taken for it; a damaged file gives an
// error, never a panic. Tensor data of base models is not read here. Format: docs/gguf.md of the ggml repository,
// versions 2 and 3, little-endian.
package gguf
