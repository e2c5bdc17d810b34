package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// sshHost is a machine that is reached by ssh; its files by SFTP.
type sshHost struct {
	name   string
	client *ssh.Client
	files  *sftp.Client
}

func dialHost(ctx context.Context, t TargetConfig) (*sshHost, error) {
	client, err := dial(ctx, t)
	if err != nil {
		return nil, err
	}
	files, err := newFiles(func(o ...sftp.ClientOption) (*sftp.Client, error) { return sftp.NewClient(client, o...) })
	if err != nil {
		_ = client.Close()
		if strings.Contains(err.Error(), "packet too long") {
			err = fmt.Errorf("%w (does the login print something? what every shell reads there, such as ~/.bashrc, must not)", err)
		}
		return nil, fmt.Errorf("ssh %s: SFTP, by which files are sent, is refused: %w", t.Host, err)
	}
	return &sshHost{name: t.Host, client: client, files: files}, nil
}

// newFiles opens a client of SFTP that does not wait for the answer to each packet.
func newFiles(open func(...sftp.ClientOption) (*sftp.Client, error)) (*sftp.Client, error) {
	return open(sftp.UseConcurrentWrites(true))
}

func (h *sshHost) Name() string { return h.name }

func (h *sshHost) Close() error {
	err := h.files.Close()
	if closeErr := h.client.Close(); err == nil && !errors.Is(closeErr, io.EOF) {
		err = closeErr
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// fromInput has /bin/sh take a script from the first line of its input. The user's login shell, which may be any, sees no more than this:
// csh knows no line break within quotes, and fish takes some backslashes there.
const fromInput = `exec /bin/sh -c 'IFS= read -r s && s=$(printf %s "$s" | tr "\001" "\012") && eval "$s"'`

// asLine makes one line of a script for fromInput.
func asLine(script string) []byte {
	return append([]byte(strings.ReplaceAll(strings.TrimRight(script, "\n"), "\n", "\x01")), '\n')
}

// Run runs the script by /bin/sh. Script and environment go by standard input ahead of the input: servers seldom take variables from the
// protocol, and command lines are everybody's to see.
func (h *sshHost) Run(ctx context.Context, script string, input []byte, env map[string]string) ([]byte, error) {
	session, err := h.client.NewSession()
	if err != nil {
		return nil, fmt.Errorf("on %s: %w", h.name, err)
	}
	defer session.Close()
	out, errs := &bounded{left: maxOutput}, &bounded{left: maxOutput}
	session.Stdout, session.Stderr = out, errs
	script, input = withEnvironment(script, input, env)
	session.Stdin = io.MultiReader(bytes.NewReader(asLine(script)), bytes.NewReader(input))
	if err := session.Start(fromInput); err != nil {
		return nil, fmt.Errorf("on %s: %w", h.name, err)
	}
	done := make(chan error, 1)
	go func() { done <- session.Wait() }()
	select {
	case <-ctx.Done():
		_ = session.Close() // the command gets a hangup
		return nil, ctx.Err()
	case err = <-done:
	}
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return out.Bytes(), &ExitError{Host: h.name, Code: exit.ExitStatus(), Signal: exit.Signal(), Stderr: errs.String()}
	}
	if err != nil {
		return nil, fmt.Errorf("on %s: the connection ended: %w", h.name, err)
	}
	return out.Bytes(), nil
}

// withEnvironment puts variables ahead of a command's input, and a reader for them before the command. read takes the
// input byte by byte, so that what follows is left for the command.
func withEnvironment(script string, input []byte, env map[string]string) (string, []byte) {
	if len(env) == 0 {
		return script, input
	}
	var lines bytes.Buffer
	var read strings.Builder
	for _, k := range sortedKeys(env) {
		fmt.Fprintf(&lines, "%s\n", env[k])
		fmt.Fprintf(&read, "IFS= read -r %s && export %s || exit 125\n", k, k)
	}
	return read.String() + script, append(lines.Bytes(), input...)
}

func (h *sshHost) wrap(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("on %s: %w", h.name, err)
}

func (h *sshHost) Open(path string) (ReadFile, error) {
	f, err := h.files.Open(path)
	if err != nil {
		return nil, h.wrap(err)
	}
	return f, nil
}

func (h *sshHost) WriteFrom(path string, offset int64) (io.WriteCloser, error) {
	_, statErr := h.files.Stat(path)
	f, err := h.files.OpenFile(path, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return nil, h.wrap(err)
	}
	if errors.Is(statErr, fs.ErrNotExist) { // before anything is in it
		err = f.Chmod(privateFile)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, h.wrap(errors.Join(err, f.Close()))
	}
	return f, nil
}

func (h *sshHost) Stat(path string) (fs.FileInfo, error) {
	info, err := h.files.Stat(path)
	return info, h.wrap(err)
}

func (h *sshHost) ReadDir(path string) ([]fs.FileInfo, error) {
	infos, err := h.files.ReadDir(path)
	return infos, h.wrap(err)
}

// MkdirAll makes the folders that are missing, for the owner alone.
func (h *sshHost) MkdirAll(path string) error {
	if info, err := h.files.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("on %s: %s is no folder", h.name, path)
		}
		return nil
	}
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		if err := h.MkdirAll(path[:i]); err != nil {
			return err
		}
	}
	if err := h.files.Mkdir(path); err != nil {
		if info, statErr := h.files.Stat(path); statErr == nil && info.IsDir() {
			return nil // another call made it
		}
		return fmt.Errorf("on %s: make %s: %w", h.name, path, err)
	}
	return h.Chmod(path, privateDir)
}

func (h *sshHost) Rename(from, to string) error { return h.wrap(h.files.PosixRename(from, to)) }
func (h *sshHost) Remove(path string) error     { return h.wrap(h.files.Remove(path)) }

func (h *sshHost) Chmod(path string, mode fs.FileMode) error {
	return h.wrap(h.files.Chmod(path, mode))
}

func (h *sshHost) Symlink(target, path string) error { return h.wrap(h.files.Symlink(target, path)) }
