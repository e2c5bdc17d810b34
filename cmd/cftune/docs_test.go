package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
)

// pages are the texts that show commands: the guides, and the comments of shipped configurations.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/*/*.md", "trainer/*/FORMAT.md", "configs/*.yaml", "configs/*/*.yaml", "trainer/config/*.yaml"} {
		paths, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(pattern)))
		require.NoError(t, err)
		require.NotEmpty(t, paths, pattern)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			texts[strings.TrimPrefix(filepath.ToSlash(path), "../../")] = string(text)
		}
	}
	return texts
}

var (
	// A command stands at the beginning of an indented line or a comment, perhaps after a prompt, variables or a launcher; or within backquotes.
	shownCommand  = regexp.MustCompile(`(?m)^(?:    |# )(?:\$ )?(?:[^#\n]*(?:mpirun|srun|do|&&|--wrap ') ?[^#\n]*?)?(?:build/bin/)?cftune +([a-z].*)$`)
	quotedCommand = regexp.MustCompile("`cftune ([a-z][^`]*)`")
	shellWord     = regexp.MustCompile(`(?:[^\s'"]|'[^']*'|"[^"]*")+`)
	// What a command line ends with: a comment, the next command.
	shellEnd = regexp.MustCompile(`\s#|\s&&|\s\|\s|;|\s&\s|\s>`)
	aside    = regexp.MustCompile(` {3,}`) // begins what a list says of a command
)

// words splits a shown command as a shell would; whole is false where only its beginning was understood.
func words(line string) (list []string, whole bool) {
	whole = true
	if strings.Count(line, "'")%2 == 1 { // the whole command was quoted
		line = line[:strings.LastIndexByte(line, '\'')]
	}
	if at := shellEnd.FindStringIndex(line); at != nil {
		line = line[:at[0]]
	}
	if at := aside.FindStringIndex(strings.TrimRight(line, " ")); at != nil {
		line, whole = line[:at[0]], false
	}
	for _, w := range shellWord.FindAllString(line, -1) {
		list = append(list, strings.NewReplacer("'", "", `"`, "").Replace(w))
	}
	return list, whole
}

// Every command that the documents show exists, takes the flags that it is shown with, and as many arguments.
func TestShownCommandsParse(t *testing.T) {
	shown := 0
	for page, text := range pages(t) {
		text = strings.ReplaceAll(text, "\\\n", " ")
		check := func(line string, complete bool) {
			list, whole := words(line)
			root := newRootCommand()
			cmd, rest, err := root.Find(list)
			if !assert.NoError(t, err, "%s: cftune %s", page, line) {
				return
			}
			if cmd == root {
				t.Errorf("%s: cftune %s: there is no such command", page, line)
				return
			}
			shown++
			if !complete || !whole || slices.Contains(rest, "...") { // then the flags only have to be there
				cmd.InitDefaultHelpFlag()
				for _, w := range rest {
					name, _, _ := strings.Cut(strings.TrimLeft(w, "-"), "=")
					known := cmd.Flags().Lookup(name) != nil || len(name) == 1 && cmd.Flags().ShorthandLookup(name) != nil
					assert.True(t, known || !strings.HasPrefix(w, "-"), "%s: cftune %s: there is no %s", page, line, w)
				}
				return
			}
			if !assert.NoError(t, cmd.ParseFlags(rest), "%s: cftune %s", page, line) {
				return
			}
			assert.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()), "%s: cftune %s", page, line)
			assert.NoError(t, cmd.ValidateRequiredFlags(), "%s: cftune %s", page, line)
		}
		for _, m := range shownCommand.FindAllStringSubmatchIndex(text, -1) {
			check(text[m[2]:m[3]], strings.HasSuffix(page, ".md") || m[0] == 0) // further comments are prose
		}
		if strings.HasSuffix(page, ".md") {
			for _, m := range quotedCommand.FindAllStringSubmatch(text, -1) {
				check(m[1], false)
			}
		}
	}
	assert.Greater(t, shown, 80, "the patterns find no commands any more")
}

// sections are the keys of a configuration that have keys of their own.
var sections = []string{"data", "objective", "adapter", "train", "optimizer", "checkpoint", "health", "limits", "metrics", "chat"}

// unknownKeys are the problems with keys that there are not.
func unknownKeys(sets ...string) (problems []string) {
	_, err := config.Parse(nil, sets, nil)
	if found, is := errors.AsType[*config.Problems](err); is {
		for _, p := range found.List {
			if strings.Contains(p.Message, "unknown key") {
				problems = append(problems, p.Message)
			}
		}
	}
	return problems
}

// Every key of a configuration that the documents name is one, and every block of one can be read.
func TestShownKeysExist(t *testing.T) {
	section := `(?:` + strings.Join(sections, "|") + `)`
	keys := regexp.MustCompile(`(?:^|[^\w./-])((?:` + section + `)(?:\.[a-z][a-z0-9_]*)+)`)
	file := regexp.MustCompile(`\.(?:jsonl?|gguf|yaml|md|html|go|h|cpp|txt|bin|parquet|zst|gz)$`)
	block := regexp.MustCompile(`(?m)(?:^    (?:model|output|` + section + `):.*\n)(?:^    .*\n)*`)
	named, blocks := 0, 0
	for page, text := range pages(t) {
		if !strings.HasSuffix(page, ".md") || strings.HasSuffix(page, "FORMAT.md") {
			continue
		}
		for _, m := range keys.FindAllStringSubmatch(text, -1) {
			if file.MatchString(m[1]) || m[1] == "adapter.type" { // that is a GGUF's
				continue
			}
			named++
			assert.Empty(t, unknownKeys(m[1]+"=1"), "%s: %s", page, m[1])
		}
		for _, b := range block.FindAllString(text, -1) {
			blocks++
			lines := strings.Split(b, "\n")
			for i := range lines {
				lines[i] = strings.TrimPrefix(lines[i], "    ")
			}
			_, err := config.Parse([]byte(strings.Join(lines, "\n")), []string{"model=m", "output=o", "data.sources=[{path: a, format: cft}]"}, nil)
			assert.NoError(t, err, "%s: %s", page, b)
		}
	}
	assert.Greater(t, named, 20)
	assert.GreaterOrEqual(t, blocks, 2)
}
