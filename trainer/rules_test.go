package trainer_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	module     = "cftune"
	moduleRoot = ".."
	// cgoPackage is the one package that may say import "C".
	cgoPackage = "bindings/engine"
)

// allowed says, for each package of this module, which other packages of it the package may import (its own
// subfolders' files count for themselves). "*" at the end stands for everything below. A package that is not listed
// fails the test: whoever adds one decides here what it may know.
var allowed = map[string][]string{
	// The loop knows its parts, never the engine behind its interface.
	"trainer": {"trainer/*"},
	// The loop's engine, spread over processes.
	"trainer/parallel": {"trainer", "trainer/pack"},
	// These know little of the others.
	"trainer/config":         {"trainer/internal/*"},
	"trainer/dataset":        {"trainer/config", "trainer/dataset/*", "trainer/internal/*"}, // what a source is
	"trainer/dataset/source": {"trainer/internal/*"},
	"trainer/dataset/store":  {"trainer/dataset/source", "trainer/internal/*"},
	"trainer/pack":           {},
	"trainer/schedule":       {},
	"trainer/gguf":           {},
	"trainer/metrics":        {"trainer/internal/*"},
	// They show records to other programs.
	"trainer/metrics/exporter":    {"trainer/metrics"},
	"trainer/metrics/tensorboard": {"trainer/metrics", "trainer/internal/*"},
	// Records become text, text becomes examples.
	"trainer/jinja":     {},
	"trainer/chat":      {"trainer/dataset", "trainer/jinja", "trainer/pack"},
	"trainer/objective": {"trainer/config", "trainer/dataset", "trainer/chat", "trainer/pack"},
	"trainer/evaluate":  {"trainer/config", "trainer/dataset", "trainer/chat", "trainer/pack", "trainer/objective", "trainer/internal/*"},
	"trainer/verify":    {"trainer/config", "trainer/dataset", "trainer/evaluate", "trainer/internal/*"},
	"trainer/critic":    {"configs/teacher", "trainer/dataset", "trainer/evaluate", "trainer/shard", "trainer/internal/*"},
	"trainer/score":     {"trainer/dataset", "trainer/evaluate", "trainer/objective", "trainer/shard", "trainer/internal/*"},
	"trainer/shard":     {},
	// The demo's data set, as records.
	"trainer/wordforms": {"trainer/dataset"},
	// Many runs as one experiment.
	"trainer/study": {"trainer", "trainer/*"},
	// Figures as a page; what was measured comes to it ready.
	"trainer/report": {"trainer/chart", "trainer/evaluate"},
	"trainer/chart":  {},
	// Stores files by name; what is in them is others' business.
	"trainer/checkpoint": {"trainer/internal/*"},
	// Copies committed checkpoints to object stores, and back.
	"trainer/mirror": {"trainer/checkpoint", "trainer/internal/*"},
	// Finds models on the hub and in ollama's store.
	"trainer/hub": {"trainer/internal/*"},
	// Reads committed checkpoints.
	"trainer/export": {"trainer/gguf", "trainer/checkpoint", "trainer/internal/*"},
	"trainer/launch": {"trainer/checkpoint", "trainer/config", "trainer/internal/*", "internal/spell"},
	// The one package that speaks to Kubernetes.
	"trainer/launch/kube": {"trainer/config", "trainer/launch", "internal/spell"},
	// Run directories: where they are, how they stand; and as pages.
	"trainer/runs":      {"trainer", "trainer/checkpoint", "trainer/config", "trainer/metrics", "trainer/mirror"},
	"trainer/dashboard": {"trainer", "trainer/*", "internal/spell"},

	"trainer/internal/bucket":     {},
	"trainer/internal/durable":    {},
	"trainer/internal/crashpoint": {"trainer/internal/durable"},

	// Opens files that are regular ones; every package may, as it may package os.
	"internal/regular": {},
	// How values are written for people and shells.
	"internal/spell": {},
	// For the tests of every package; writes its files without the packages under test.
	"internal/testmodel": {},
	"internal/testlimit": {},
	"internal/testfiles": {},
	// Reads event files without the package that writes them.
	"internal/testevents": {},
	// A teacher that misbehaves, for tests of trainer/critic and the program.
	"internal/faultteacher": {},

	"configs/teacher": {},

	"bindings/engine":        {"bindings/native"},
	"bindings/native":        {},
	"bindings/llama":         {"bindings/engine"},
	"bindings/llama/example": {"bindings/llama"},
	"cmd/cftune":             {"trainer", "trainer/*", "bindings/*", "internal/spell"},
	"bench/prefix":           {"trainer/pack", "bindings/engine"},
	"bench/merge":            {"internal/testmodel", "trainer/gguf"},
	"bench/gpu/model":        {"internal/testmodel"},
	"scripts/machocheck":     {},
}

// goFile is one parsed Go file of this module.
type goFile struct {
	path string // slash-separated, from the module's root
	dir  string
	test bool
	src  []byte
	ast  *ast.File
}

func (f goFile) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic(err) // the parser took it as a string literal
		}
		paths = append(paths, p)
	}
	return paths
}

// goFiles parses every Go file of this module, nested modules and built things left out.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(moduleRoot, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(moduleRoot, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || rel == "build" || rel == "third_party") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), rel, src, 0)
		if err != nil {
			return err
		}
		files = append(files, goFile{rel, path.Dir(rel), strings.HasSuffix(rel, "_test.go"), src, parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files found under %s: the walk is broken", len(files), moduleRoot)
	}
	return files
}

func matches(patterns []string, dir string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, isPrefix := strings.CutSuffix(p, "*")
		return dir == p || isPrefix && strings.HasPrefix(dir, prefix)
	})
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, f := range goFiles(t) {
		rules, known := allowed[f.dir]
		if !known {
			t.Errorf("%s: package %s is not in the import table of this test", f.path, f.dir)
			continue
		}
		for _, imported := range f.imports() {
			dir, ours := strings.CutPrefix(imported, module+"/")
			if !ours || dir == f.dir {
				continue
			}
			// Tests may use helpers for tests, and what lies beside them, but keep the great boundary.
			if f.test && !(strings.HasPrefix(f.dir, "trainer") && strings.HasPrefix(dir, "bindings")) &&
				!(strings.HasPrefix(f.dir, "bindings") && strings.HasPrefix(dir, "trainer")) {
				continue
			}
			if dir != "internal/regular" && !matches(rules, dir) {
				t.Errorf("%s imports %s, which the table does not allow for %s", f.path, dir, f.dir)
			}
		}
	}
}

// internal/regular imports the standard library alone.
func TestGGUFImportsOnlyTheStandardLibrary(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.dir != "trainer/gguf" || f.test {
			continue
		}
		for _, p := range f.imports() {
			if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") || first == module && p != module+"/internal/regular" {
				t.Errorf("%s imports %s", f.path, p)
			}
		}
	}
}

// A file that is found by its name may be a named pipe, which is waited for without end: internal/regular opens those. What is left are
// folders, files that a user names, which may be pipes, and new ones.
func TestFilesFoundByNameAreOpenedAsRegularOnes(t *testing.T) {
	opens := []string{"Open", "OpenFile", "ReadFile"}
	may := []string{
		"trainer/config/load.go", "trainer/config/document.go", "trainer/critic/prompt.go", "trainer/dataset/source/expand.go",
		"trainer/hub/store.go",                                                            // HF_TOKEN_PATH
		"trainer/launch/ssh.go", "trainer/launch/sshconfig.go", "trainer/launch/hosts.go", // of ssh
		"trainer/launch/process_linux.go", "trainer/launch/kube/files.go", "trainer/internal/crashpoint/crashpoint.go",
		"trainer/internal/durable/fs.go", "trainer/mirror/objects.go", // folders, to sync them, and new files
		"cmd/cftune/quantize.go", "cmd/cftune/imatrix.go", "cmd/cftune/export_chat.go", "cmd/cftune/init.go",
	}
	used := map[string]bool{}
	for _, f := range goFiles(t) {
		if f.test || !strings.HasPrefix(f.dir, "trainer") && f.dir != "cmd/cftune" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok || !slices.Contains(opens, s.Sel.Name) {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "os" {
				used[f.path] = true
				if !slices.Contains(may, f.path) {
					t.Errorf("%s calls os.%s; internal/regular opens what was found by its name", f.path, s.Sel.Name)
				}
			}
			return true
		})
	}
	for _, path := range may {
		if !used[path] {
			t.Errorf("%s opens nothing by package os, and need not be in this list", path)
		}
	}
}

// Kubernetes' modules are large, and change often: one package knows them.
func TestOnePackageKnowsKubernetes(t *testing.T) {
	found := false
	for _, f := range goFiles(t) {
		for _, p := range f.imports() {
			if !strings.HasPrefix(p, "k8s.io/") && !strings.HasPrefix(p, "sigs.k8s.io/") {
				continue
			}
			found = true
			if f.dir != "trainer/launch/kube" {
				t.Errorf("%s imports %s; only trainer/launch/kube may", f.path, p)
			}
		}
	}
	if !found {
		t.Error("no file imports k8s.io")
	}
}

func TestOnePackageHasCgo(t *testing.T) {
	found := false
	for _, f := range goFiles(t) {
		if !slices.Contains(f.imports(), "C") {
			continue
		}
		if f.dir != cgoPackage {
			t.Errorf("%s imports C; only %s may", f.path, cgoPackage)
		}
		found = true
	}
	if !found {
		t.Errorf("no file of %s imports C", cgoPackage)
	}
}

// Go's build cache knows the headers of a package's own folder only: without links there, a program could be built of what was compiled with
// old headers, and write past the ends of what the library hands it.
func TestCgoSeesEveryHeader(t *testing.T) {
	headers, err := filepath.Glob(filepath.Join(moduleRoot, "bindings", "native", "include", "*.h"))
	require.NoError(t, err)
	require.NotEmpty(t, headers)
	for _, header := range headers {
		link, err := os.Readlink(filepath.Join(moduleRoot, "bindings", "engine", filepath.Base(header)))
		require.NoError(t, err, "%s lacks a link to it", cgoPackage)
		assert.Equal(t, "../native/include/"+filepath.Base(header), link)
	}
}

// Flags, signals and the end of the process belong to programs; a library that takes them surprises its caller.
func TestOnlyCommandsHaveFlagsSignalsAndExits(t *testing.T) {
	reserved := []string{"flag", "os/signal", "github.com/spf13/cobra", "github.com/spf13/pflag"}
	exits := map[string][]string{"os": {"Exit"}, "log": {"Fatal", "Fatalf", "Fatalln"}}
	programs := []string{"cmd/", "bench/", "scripts/", "bindings/llama/example"}
	for _, f := range goFiles(t) {
		if f.test || slices.ContainsFunc(programs, func(p string) bool { return strings.HasPrefix(f.dir, p) }) {
			continue
		}
		for _, p := range f.imports() {
			if slices.Contains(reserved, p) {
				t.Errorf("%s imports %s", f.path, p)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && slices.Contains(exits[x.Name], s.Sel.Name) {
					t.Errorf("%s calls %s.%s", f.path, x.Name, s.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestFilesAreFormatted(t *testing.T) {
	for _, f := range goFiles(t) {
		formatted, err := format.Source(f.src)
		if err != nil {
			t.Errorf("%s: %v", f.path, err)
		} else if !bytes.Equal(formatted, f.src) {
			t.Errorf("%s is not formatted with gofmt", f.path)
		}
	}
}

// docs/DECISIONS.md lists every decision of docs/decisions, by the anchor that readers of Markdown give its heading.
func TestDecisionsAreInTheirList(t *testing.T) {
	list, err := os.ReadFile("../docs/DECISIONS.md")
	require.NoError(t, err)
	files, err := filepath.Glob("../docs/decisions/*.md")
	require.NoError(t, err)
	var headings, links []string
	dropped := regexp.MustCompile(`[^a-z0-9_ -]`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, line := range strings.Split(string(text), "\n") {
			if title, ok := strings.CutPrefix(line, "## "); ok {
				anchor := strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
				headings = append(headings, "decisions/"+filepath.Base(file)+"#"+anchor)
			}
		}
	}
	for _, link := range regexp.MustCompile(`(?m)^- \[.+\]\((.+)\)$`).FindAllStringSubmatch(string(list), -1) {
		links = append(links, link[1])
	}
	assert.NotEmpty(t, headings)
	assert.ElementsMatch(t, headings, links, "a decision that the list lacks, or a link to none")
}

// Whoever adds a module says under which licence it comes.
func TestNoticeNamesEveryModule(t *testing.T) {
	gomod, err := os.ReadFile(filepath.Join(moduleRoot, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	notice, err := os.ReadFile(filepath.Join(moduleRoot, "NOTICE"))
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^(?:require )?\s*(\S+\.\S+/\S+) v\S+`).FindAllSubmatch(gomod, -1)
	if len(required) == 0 {
		t.Fatal("no requirement found in go.mod")
	}
	for _, m := range required {
		if !bytes.Contains(notice, append([]byte("  "), append(m[1], ' ')...)) {
			t.Errorf("NOTICE does not name %s", m[1])
		}
	}
}

func TestHeadersCompileAsCAndCPlusPlus(t *testing.T) {
	include := filepath.Join(moduleRoot, "bindings", "native", "include")
	for _, lang := range []struct{ compiler, language, standard string }{
		{"cc", "c", "c11"},
		{"c++", "c++", "c++17"},
	} {
		for _, header := range []string{"cft.h", "cft_infer.h"} {
			t.Run(fmt.Sprintf("%s as %s", header, lang.standard), func(t *testing.T) {
				if _, err := exec.LookPath(lang.compiler); errors.Is(err, exec.ErrNotFound) {
					t.Skipf("no %s on this machine", lang.compiler)
				}
				cmd := exec.Command(lang.compiler, "-std="+lang.standard, "-x", lang.language, "-fsyntax-only",
					"-Wall", "-Wextra", "-Wpedantic", "-Werror", filepath.Join(include, header))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}
