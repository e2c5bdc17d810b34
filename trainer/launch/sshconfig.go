package launch

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// sshSettings are the basics that are taken from ssh's configuration: the first value found for each, as ssh does.
type sshSettings struct {
	HostName, User, ProxyJump string
	Port                      int
	Identity                  []string
}

// readSSHConfig returns the settings for a host in the file at path; a missing file has none. Match blocks and Include are
// not followed.
func readSSHConfig(path, host string) (sshSettings, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return sshSettings{}, nil
	}
	if err != nil {
		return sshSettings{}, err
	}
	defer f.Close()
	var s sshSettings
	applies := true
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value := splitSetting(lines.Text())
		switch key {
		case "host":
			applies = hostMatches(strings.Fields(value), host)
			continue
		case "match":
			applies = false
			continue
		}
		if applies && value != "" {
			s.take(key, value, host)
		}
	}
	return s, lines.Err()
}

func (s *sshSettings) take(key, value, host string) {
	first := func(to *string) {
		if *to == "" {
			*to = value
		}
	}
	switch key {
	case "hostname":
		value = strings.ReplaceAll(value, "%h", host)
		first(&s.HostName)
	case "user":
		first(&s.User)
	case "proxyjump":
		first(&s.ProxyJump)
	case "port":
		if n, err := strconv.Atoi(value); err == nil && s.Port == 0 {
			s.Port = n
		}
	case "identityfile":
		s.Identity = append(s.Identity, value)
	}
}

// splitSetting splits a line into its key, in lower case, and its value without quotes.
func splitSetting(line string) (key, value string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", ""
	}
	i := strings.IndexAny(line, " \t=")
	if i < 0 {
		return strings.ToLower(line), ""
	}
	value = strings.TrimLeft(line[i:], " \t=")
	if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return strings.ToLower(line[:i]), value
}

func hostMatches(patterns []string, host string) bool {
	matched := false
	for _, p := range patterns {
		p, not := strings.CutPrefix(p, "!")
		if ok, err := path.Match(p, host); err == nil && ok {
			if not {
				return false
			}
			matched = true
		}
	}
	return matched
}

// expandHome replaces a leading ~ by this user's home folder.
func expandHome(p string) string {
	rest, ok := strings.CutPrefix(p, "~/")
	if !ok {
		return p
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		return p
	}
	return filepath.Join(dir, rest)
}
