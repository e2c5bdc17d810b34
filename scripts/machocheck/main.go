// Command machocheck looks at a program and libraries for macOS as a loader would: whether each finds the others by the names that
// are written in it, wherever the folder is put, and finds the symbols there that it takes from them. For scripts/check-macos.
//
// usage: machocheck PROGRAM LIBRARY-FOLDER
package main

import (
	"debug/macho"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: machocheck PROGRAM LIBRARY-FOLDER")
		os.Exit(2)
	}
	problems, checked, err := check(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "machocheck:", err)
		os.Exit(1)
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, "machocheck:", p)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
	fmt.Println(checked)
}

// image is one file as the loader sees it.
type image struct {
	path         string
	name         string // what it calls itself; libraries only
	dependencies []string
	rpaths       []string
	exported     map[string]bool
	taken        []symbol
}

type symbol struct {
	name string
	from int // number of a dependency, counted from 1; other numbers are the file itself, or any
}

const (
	idDylib     = 0xd
	weakDylib   = 0x80000018
	undefined   = 0x0 // N_UNDF, N_EXT and N_STAB of nlist.h
	external    = 0x1
	debugging   = 0xe0
	kind        = 0xe
	ordinalMask = 0xff
)

func read(path string) (*image, error) {
	f, err := macho.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	if f.Cpu != macho.CpuArm64 {
		return nil, fmt.Errorf("%s is for %s", path, f.Cpu)
	}
	m := &image{path: path, exported: map[string]bool{}}
	for _, load := range f.Loads {
		switch l := load.(type) {
		case *macho.Dylib:
			m.dependencies = append(m.dependencies, l.Name)
		case *macho.Rpath:
			m.rpaths = append(m.rpaths, l.Path)
		default:
			raw := load.Raw()
			switch command := f.ByteOrder.Uint32(raw); command {
			case idDylib, weakDylib:
				name, _, _ := strings.Cut(string(raw[f.ByteOrder.Uint32(raw[8:]):]), "\x00")
				if command == idDylib {
					m.name = name
				} else {
					m.dependencies = append(m.dependencies, name)
				}
			}
		}
	}
	if f.Symtab == nil {
		return nil, fmt.Errorf("%s has no symbols", path)
	}
	for _, s := range f.Symtab.Syms {
		switch {
		case s.Type&debugging != 0 || s.Type&external == 0:
		case s.Type&kind == undefined:
			m.taken = append(m.taken, symbol{s.Name, int(s.Desc>>8) & ordinalMask})
		default:
			m.exported[s.Name] = true
		}
	}
	return m, nil
}

// check returns what is wrong, and a line about what was looked at.
func check(program, folder string) (problems []string, checked string, err error) {
	var paths []string
	for _, pattern := range []string{"*.dylib", "*.so", "devices/*.so"} {
		found, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil {
			return nil, "", err
		}
		paths = append(paths, found...)
	}
	for _, name := range []string{"libcftune.dylib", "libllama.dylib", "libggml.dylib", "libggml-base.dylib", "libggml-cpu.so"} {
		if !slices.Contains(paths, filepath.Join(folder, name)) {
			problems = append(problems, filepath.Join(folder, name)+" is missing")
		}
	}
	images := map[string]*image{}
	for _, path := range append(paths, program) {
		if images[path], err = read(path); err != nil {
			return nil, "", err
		}
	}
	symbols := 0
	for _, path := range append(paths, program) {
		m := images[path]
		if path != program && strings.HasSuffix(path, ".dylib") {
			if own, ok := strings.CutPrefix(m.name, "@rpath/"); !ok || images[filepath.Join(folder, own)] == nil {
				problems = append(problems, fmt.Sprintf("%s calls itself %q, which is no file of %s", path, m.name, folder))
			}
		}
		neighbours := make([]*image, len(m.dependencies))
		for i, name := range m.dependencies {
			if strings.HasPrefix(name, "/usr/lib/") || strings.HasPrefix(name, "/System/Library/") {
				continue
			}
			if neighbours[i] = images[m.resolve(name)]; neighbours[i] == nil {
				problems = append(problems, fmt.Sprintf("%s does not find %s by %q", path, name, m.rpaths))
			}
		}
		for _, s := range m.taken {
			if s.from < 1 || s.from > len(neighbours) || neighbours[s.from-1] == nil {
				continue
			}
			symbols++
			if !neighbours[s.from-1].exported[s.name] {
				problems = append(problems, fmt.Sprintf("%s takes %s from %s, which has none", path, s.name, m.dependencies[s.from-1]))
			}
		}
	}
	if symbols == 0 {
		problems = append(problems, "no file takes a symbol from another: they were not read rightly")
	}
	return problems, fmt.Sprintf("%d files find each other, and %d symbols in each other", len(images), symbols), nil
}

// resolve returns the file that a name means, by the rpaths that go with the folder when it is moved.
func (m *image) resolve(name string) string {
	rest, ok := strings.CutPrefix(name, "@rpath/")
	if !ok {
		return ""
	}
	for _, rpath := range m.rpaths {
		relative, ok := strings.CutPrefix(rpath, "@loader_path")
		if !ok {
			continue
		}
		path := filepath.Join(filepath.Dir(m.path), relative, rest)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
