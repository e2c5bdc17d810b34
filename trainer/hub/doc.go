// Package hub finds the file behind a model's name: a path, hf://owner/repo/file.gguf@revision on Hugging Face's hub, or
// ollama://name:tag in ollama's store on this machine.
//
// What comes from the hub lies in the cache that Hugging Face's own libraries use, laid out as they do, so that nothing is
// downloaded twice. A file appears there under its name whole and verified or not at all; a download that was cut off goes on
// where it ended. Several processes may ask for the same file: one downloads, the others wait.
//
// The package sends a token to the hub only, never to the hosts that the hub redirects to, and never over plain http, but on
// this machine itself.
package hub
