// Package llama has the public API of go-skynet/go-llama.cpp over cftune's engine: programs that use that package compile
// with this one when their import path is changed, and get a present llama.cpp underneath.
//
// Names and signatures are those of its last version (2024-03-14). What differs, because there it was a fault:
//
//   - An LLama is safe for concurrent use: calls wait for each other. PredictContext and EvalContext end with their context.
//   - Free can be called twice; calls after it return an error. Close is Free as an io.Closer.
//   - Embeddings are as long as the model is wide. Answers are not cut in a buffer of as many bytes as tokens were asked for.
//   - Stop words end the answer where they begin and are not part of it; letters of theirs are not trimmed from its end.
//   - Errors carry llama.cpp's words. Options that the present llama.cpp has no counterpart for (or that this package does
//     not pass on yet) return an error that wraps ErrUnsupported when they are set away from their defaults, instead of
//     being ignored.
//   - A prompt is read with its special tokens (the markup of chat templates), and BOS is put before it where the model
//     asks for that.
//
// The same seed, prompt and options give the same answer on the same machine.
package llama
