package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"cftune/trainer/config"
	"cftune/trainer/launch"
)

const (
	runName    = "run.json"
	configPath = launch.KubernetesConfigDir + "/" + runName
	// maxShipped bounds the files in a ConfigMap, which may have a MiB with everything.
	maxShipped = 768 << 10
	nameDigest = 12
)

// shipped is what the ConfigMap holds.
type shipped struct {
	run    config.Run
	text   []byte
	files  map[string][]byte
	digest string
}

var fileWords = regexp.MustCompile(`[^-._A-Za-z0-9]+`)

// ship says what the paths of a configuration are in the pods, and takes in the small files that it names.
func ship(t launch.TargetConfig, run config.Run, output string) (*shipped, error) {
	s := &shipped{files: map[string][]byte{}}
	total := 0
	place := func(key, p string) (string, error) {
		if strings.Contains(p, "://") {
			return p, nil
		}
		if to, ok := t.Mapped(p); ok {
			return to, nil
		}
		const wayOut = "put it on a claim and name it in paths of the target, or give a URL"
		if p == "-" {
			return "", errors.New("standard input does not reach a pod: " + wayOut)
		}
		info, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("%s is not here, and paths of target %s does not say where it is in the pods", p, t.Name())
		case err != nil:
			return "", err
		case !info.Mode().IsRegular() || info.Size() > maxShipped || key == "model":
			return "", fmt.Errorf("%s does not travel with the manifests, which take plain files of %d KiB in all: %s", p, maxShipped>>10, wayOut)
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(content)
		name := hex.EncodeToString(sum[:])[:nameDigest] + "-" + fileWords.ReplaceAllString(filepath.Base(p), "_")
		if _, twice := s.files[name]; !twice {
			total += len(content)
		}
		if total > maxShipped {
			return "", fmt.Errorf("%s does not fit: the manifests take files of %d KiB in all: %s", p, maxShipped>>10, wayOut)
		}
		s.files[name] = content
		return path.Join(launch.KubernetesConfigDir, name), nil
	}
	var err error
	if s.run, err = launch.Relocate(run, place); err != nil {
		return nil, err
	}
	s.run.Output = output
	if s.text, err = json.MarshalIndent(s.run, "", "  "); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	s.text = append(s.text, '\n')
	return s, nil
}
