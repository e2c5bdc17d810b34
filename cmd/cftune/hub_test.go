package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptHub serves a folder as the repository o/m of a hub, of which HF_ENDPOINT then tells; the second answer and each one
// after it that gives content is cut short, so that downloads must go on: hub FOLDER
func scriptHub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hub FOLDER")
	}
	folder := ts.MkAbs(args[0])
	var gets atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(filepath.Join(folder, path.Base(r.URL.Path)))
		if !strings.HasPrefix(r.URL.Path, "/o/m/resolve/main/") || err != nil {
			w.Header().Set("X-Error-Code", "EntryNotFound")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		sum := sha256.Sum256(data)
		w.Header().Set("X-Repo-Commit", strings.Repeat("c", 40))
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
		if r.Method == http.MethodGet && r.Header.Get("Range") == "" && gets.Add(1) > 1 {
			w.Write(data[:len(data)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeFile(w, r, filepath.Join(folder, path.Base(r.URL.Path)))
	}))
	ts.Defer(server.Close)
	ts.Setenv("HF_ENDPOINT", server.URL)
	ts.Setenv("HUB", server.URL)
	ts.Setenv("HF_HUB_CACHE", ts.MkAbs("cache"))
	ts.Setenv("OLLAMA_MODELS", ts.MkAbs("ollama"))
}

// scriptOllama puts a model into ollama's store below ./ollama: ollama NAME:TAG FILE
func scriptOllama(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ollama NAME:TAG FILE")
	}
	name, tag, _ := strings.Cut(args[0], ":")
	store := ts.MkAbs("ollama")
	manifests := filepath.Join(store, "manifests", "registry.ollama.ai", "library", name)
	ts.Check(os.MkdirAll(manifests, 0o755))
	ts.Check(os.MkdirAll(filepath.Join(store, "blobs"), 0o755))
	var layers []map[string]any
	for kind, data := range map[string][]byte{"model": []byte(ts.ReadFile(args[1])), "template": []byte("{{ .Prompt }}")} {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		ts.Check(os.WriteFile(filepath.Join(store, "blobs", "sha256-"+digest), data, 0o644))
		layers = append(layers, map[string]any{"mediaType": "application/vnd.ollama.image." + kind, "digest": "sha256:" + digest, "size": len(data)})
	}
	text, err := json.Marshal(map[string]any{"schemaVersion": 2, "layers": layers})
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(manifests, tag), text, 0o644))
}
