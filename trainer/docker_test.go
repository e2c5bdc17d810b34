package trainer_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// instruction is one of a Dockerfile, with its lines joined.
type instruction struct {
	word string
	args []string
}

// dockerfile splits a Dockerfile.
func dockerfile(text string) []instruction {
	var list []instruction
	var whole string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" && whole == "" {
			continue
		}
		if part, more := strings.CutSuffix(line, "\\"); more {
			whole += part
			continue
		}
		fields := strings.Fields(whole + line)
		whole = ""
		list = append(list, instruction{strings.ToUpper(fields[0]), fields[1:]})
	}
	return list
}

var (
	// pinnedImage has a digest, or a tag with a version of three or two numbers.
	pinnedImage = regexp.MustCompile(`^[a-z0-9./-]+(:[0-9]+\.[0-9]+(\.[0-9]+)?(-[a-z0-9.-]+)?|@sha256:[0-9a-f]{64})$`)
	plainUser   = regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`)
	secretWord  = regexp.MustCompile(`(?i)(secret|token|password|api_?key)`)
)

// lint returns what is wrong with a Dockerfile that is built in root.
func lint(root, text string) []string {
	var problems, stages []string
	wrong := func(what string, i instruction) {
		problems = append(problems, what+": "+i.word+" "+strings.Join(i.args, " "))
	}
	user, entry, from := "", "", 0
	for _, i := range dockerfile(text) {
		switch i.word {
		case "FROM":
			from++
			user, entry = "", ""
			if !pinnedImage.MatchString(i.args[0]) && !slices.Contains(stages, i.args[0]) {
				wrong("an image without a version", i)
			}
			if len(i.args) == 3 && strings.EqualFold(i.args[1], "as") {
				stages = append(stages, i.args[2])
			}
		case "COPY":
			sources := i.args[:len(i.args)-1]
			if stage, ok := strings.CutPrefix(i.args[0], "--from="); ok {
				if !slices.Contains(stages, stage) && !pinnedImage.MatchString(stage) {
					wrong("no such stage", i)
				}
				continue
			}
			for _, source := range sources {
				if found, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(path.Clean(source)))); err != nil || len(found) == 0 {
					wrong("not in the repository: "+source, i)
				}
			}
		case "ADD":
			wrong("COPY does it", i)
		case "ENV", "ARG":
			for _, a := range i.args {
				if name, _, _ := strings.Cut(a, "="); secretWord.MatchString(name) {
					wrong("a secret would stay in the image", i)
				}
			}
		case "RUN":
			line := strings.Join(i.args, " ")
			if strings.Contains(line, "apt-get install") && !strings.Contains(line, "--no-install-recommends") || strings.Contains(line, "curl ") || strings.Contains(line, "sudo ") {
				wrong("more than it needs", i)
			}
		case "USER":
			user = i.args[0]
		case "ENTRYPOINT":
			entry = strings.Join(i.args, " ")
		}
	}
	if !plainUser.MatchString(user) {
		problems = append(problems, "the last stage runs as "+user+", not as a number other than root's")
	}
	if entry != `["cftune"]` || from < 2 {
		problems = append(problems, "the last stage does not begin with cftune, or has no build before it")
	}
	return problems
}

// What can be said of images without building them.
func TestDockerfilesAreClean(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(moduleRoot, "configs", "docker", "*.Dockerfile"))
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Empty(t, lint(moduleRoot, string(text)), file)
		assert.Contains(t, string(text), "openssh-server", "%s: a JobSet's pods need it", file)
		ignored, err := os.ReadFile(file + ".dockerignore")
		require.NoError(t, err)
		for _, folder := range []string{".git", "build", "runs"} {
			assert.Contains(t, strings.Split(string(ignored), "\n"), folder, file)
		}
	}
	good, err := os.ReadFile(files[0])
	require.NoError(t, err)
	for was, is := range map[string]string{
		"USER 1000:1000":          "USER root",
		"FROM debian:12.12-slim":  "FROM debian:latest",
		"COPY LICENSE":            "COPY LICENCE",
		"--from=build /src/build": "--from=builder /src/build",
		"WORKDIR /tmp":            "ENV HF_TOKEN=x",
		"--no-install-recommends": "",
	} {
		changed := strings.Replace(string(good), was, is, 1)
		require.NotEqual(t, string(good), changed, was)
		assert.NotEmpty(t, lint(moduleRoot, changed), "%s for %s", is, was)
	}
}
