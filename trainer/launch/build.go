package launch

import (
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cftune/trainer/internal/durable"
)

// Build is the program with its libraries, as it is sent: bin/cftune and native/lib.
type Build struct {
	// Arch is as uname -s and -m call it: "Linux x86_64".
	Arch  string
	Files []buildFile
	// Digest is of the names and contents of all files.
	Digest string
	Bytes  int64
}

type buildFile struct {
	local, name string // name: below the build's folder, with slashes
	link        string // target, where it is a link
	mode        fs.FileMode
	written     durable.Written
}

const (
	programName = "bin/cftune"
	libraryDir  = "native/lib"
	devicesDir  = libraryDir + "/devices" // ggml's backends for other devices, where they are built
	// minPrefix is what is kept of digests in names of folders.
	digestPrefix = 16
)

// unameOf are uname's words for what a program was compiled for.
var unameOf = map[elf.Machine]string{elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64", elf.EM_PPC64: "ppc64le", elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x"}

// OpenBuild looks at the build in a folder; an empty one is that of the program at executable.
func OpenBuild(folder, executable string) (*Build, error) {
	program, libraries := filepath.Join(folder, programName), filepath.Join(folder, libraryDir)
	if folder == "" {
		var err error
		if program, err = filepath.EvalSymlinks(executable); err != nil {
			return nil, fmt.Errorf("this program's build: %w", err)
		}
		libraries = filepath.Join(filepath.Dir(filepath.Dir(program)), libraryDir)
	}
	b := &Build{}
	var err error
	if b.Arch, err = architecture(program); err != nil {
		return nil, usage("build: %w", err)
	}
	if err := b.add(program, programName, 0o700); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	if err := b.addLibraries(libraries, libraryDir); err != nil {
		return nil, err
	}
	if err := b.addLibraries(filepath.Join(libraries, "devices"), devicesDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	sum := sha256.New()
	for _, f := range b.Files {
		fmt.Fprintf(sum, "%s\x00%s\x00%s\x00", f.name, f.link, f.written.SHA256)
		b.Bytes += f.written.Bytes
	}
	b.Digest = hex.EncodeToString(sum.Sum(nil))
	return b, nil
}

// addLibraries adds the libraries in a folder.
func (b *Build) addLibraries(folder, name string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return usage("build: the program's libraries are not where they are sent from: %w (make builds both; build in the file of targets names another folder)", err)
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".so") && !strings.HasSuffix(e.Name(), ".dylib") {
			continue
		}
		if err := b.add(filepath.Join(folder, e.Name()), name+"/"+e.Name(), privateFile); err != nil {
			return fmt.Errorf("build: %w", err)
		}
	}
	return nil
}

func (b *Build) add(local, name string, mode fs.FileMode) error {
	f := buildFile{local: local, name: name, mode: mode}
	info, err := os.Lstat(local)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if f.link, err = os.Readlink(local); err != nil {
			return err
		}
		// Libraries link to their neighbours; anything else is sent as what it links to.
		if strings.ContainsRune(f.link, '/') {
			f.link = ""
		}
	}
	if f.link == "" {
		if f.written, err = durable.Digest(local); err != nil {
			return err
		}
	}
	b.Files = append(b.Files, f)
	return nil
}

// architecture tells what a program was built for.
func architecture(program string) (string, error) {
	f, err := elf.Open(program)
	var format *elf.FormatError
	switch {
	case errors.As(err, &format):
		return architectureOnMac(program, err)
	case err != nil:
		return "", err
	}
	defer f.Close()
	name, known := unameOf[f.Machine]
	if !known {
		name = f.Machine.String()
	}
	return "Linux " + name, nil
}

// macUnameOf are macOS's.
var macUnameOf = map[macho.Cpu]string{macho.CpuArm64: "arm64", macho.CpuAmd64: "x86_64"}

// architectureOnMac tells it of a program for macOS; notELF is what it is otherwise.
func architectureOnMac(program string, notELF error) (string, error) {
	f, err := macho.Open(program)
	if err != nil {
		return "", fmt.Errorf("%s is no program: %w", program, notELF)
	}
	defer f.Close()
	name, known := macUnameOf[f.Cpu]
	if !known {
		name = f.Cpu.String()
	}
	return "Darwin " + name, nil
}
