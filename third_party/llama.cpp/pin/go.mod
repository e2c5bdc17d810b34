// The pin of llama.cpp and ggml: the Go module that carries their sources. Nothing here is Go code of ours;
// scripts/build-native asks the go tool for this module's folder, and go.sum makes sure of its contents.
module cftune/third_party/llama.cpp/pin

go 1.26

require github.com/ollama/ollama v0.17.4
