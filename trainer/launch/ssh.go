package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"cftune/internal/spell"
)

const (
	sshPort      = 22
	dialTimeout  = 20 * time.Second
	keepalive    = 15 * time.Second
	maxSSHJumps  = 8
	keepaliveAsk = "keepalive@openssh.com"
)

// hop is one ssh server on the way to a target, the last one being the target itself.
type hop struct {
	alias, host, user string
	port              int
	identity          []string
}

func (h hop) address() string { return net.JoinHostPort(h.host, strconv.Itoa(h.port)) }

// route finds the servers on the way to a target.
func route(t TargetConfig) ([]hop, error) {
	path := t.SSHConfig
	if path == "" {
		path = "~/.ssh/config"
	}
	path = expandHome(path)
	last, settings, err := resolveHop(path, t.Host, t.User, t.Port, t.Identity)
	if err != nil {
		return nil, err
	}
	jumps := t.Jump
	if len(jumps) == 0 && settings.ProxyJump != "" && settings.ProxyJump != "none" {
		jumps = strings.Split(settings.ProxyJump, ",")
	}
	if len(jumps) > maxSSHJumps {
		return nil, usage("%s: more than %d hosts on the way", t.Host, maxSSHJumps)
	}
	var hops []hop
	for _, j := range jumps {
		name, host, port, err := splitJump(strings.TrimSpace(j))
		if err != nil {
			return nil, err
		}
		h, own, err := resolveHop(path, host, name, port, t.Identity)
		if err != nil {
			return nil, err
		}
		if len(hops) == 0 && own.ProxyJump != "" && own.ProxyJump != "none" {
			return nil, usage("%s: ssh's configuration reaches it through %s: name the whole way in the target's jump", host, own.ProxyJump)
		}
		hops = append(hops, h)
	}
	return append(hops, last), nil
}

// splitJump takes user@host:port apart.
func splitJump(text string) (name, host string, port int, err error) {
	host = strings.TrimPrefix(text, "ssh://")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		name, host = host[:i], host[i+1:]
	}
	if h, p, splitErr := net.SplitHostPort(host); splitErr == nil {
		if port, err = strconv.Atoi(p); err != nil {
			return "", "", 0, usage("jump: %q: %q is no port", text, p)
		}
		host = h
	}
	if !hostWords.MatchString(host) {
		return "", "", 0, usage("jump: %q is no user@host:port", text)
	}
	return name, strings.Trim(host, "[]"), port, nil
}

// resolveHop lays what is given over ssh's configuration over the defaults.
func resolveHop(path, alias, name string, port int, identity []string) (hop, sshSettings, error) {
	s, err := readSSHConfig(path, alias)
	if err != nil {
		return hop{}, s, fmt.Errorf("ssh: read %s: %w", path, err)
	}
	h := hop{alias: alias, host: alias, user: name, port: port, identity: identity}
	if s.HostName != "" {
		h.host = s.HostName
	}
	if h.user == "" {
		h.user = s.User
	}
	if h.user == "" {
		me, err := user.Current()
		if err != nil {
			return hop{}, s, fmt.Errorf("ssh: who am I: %w", err)
		}
		h.user = me.Username
	}
	if h.port == 0 {
		h.port = s.Port
	}
	if h.port == 0 {
		h.port = sshPort
	}
	if len(h.identity) == 0 {
		h.identity = s.Identity
	}
	if len(h.identity) == 0 {
		h.identity = []string{"~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"}
	}
	return h, s, nil
}

// keyring has the keys to offer a server, and what could not be used of them.
type keyring struct {
	methods []ssh.AuthMethod
	hints   []string
	agent   net.Conn
}

// openKeys collects the agent's keys and those of files. A server is never asked for a password.
func openKeys(h hop, explicit bool) (*keyring, error) {
	k := &keyring{}
	var signers []ssh.Signer
	for _, path := range h.identity {
		text, err := os.ReadFile(expandHome(path))
		if err != nil {
			if explicit || !errors.Is(err, fs.ErrNotExist) {
				return nil, &UsageError{fmt.Errorf("ssh: identity: %w", err)}
			}
			continue
		}
		signer, err := ssh.ParsePrivateKey(text)
		var locked *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &locked):
			k.hints = append(k.hints, fmt.Sprintf("%s is encrypted: ssh-add %s gives it to the agent", path, path))
		case err != nil:
			return nil, &UsageError{fmt.Errorf("ssh: identity %s: %w", path, err)}
		default:
			signers = append(signers, signer)
		}
	}
	fromAgent := func() ([]ssh.Signer, error) { return nil, nil }
	if socket := os.Getenv("SSH_AUTH_SOCK"); socket != "" {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			k.hints = append(k.hints, fmt.Sprintf("the agent at SSH_AUTH_SOCK does not answer: %v", err))
		} else {
			k.agent, fromAgent = conn, agent.NewClient(conn).Signers
		}
	} else {
		k.hints = append(k.hints, "there is no agent (SSH_AUTH_SOCK is not set)")
	}
	// One method with all keys: the library offers each method once.
	k.methods = []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
		more, err := fromAgent()
		return append(signers, more...), err
	})}
	return k, nil
}

func (k *keyring) close() {
	if k.agent != nil {
		_ = k.agent.Close() // nothing was written to it that could be lost
	}
}

// dial connects to a target through all servers on the way. The connections of those are closed with the last one.
func dial(ctx context.Context, t TargetConfig) (*ssh.Client, error) {
	hops, err := route(t)
	if err != nil {
		return nil, err
	}
	known := t.KnownHosts
	if known == "" {
		known = "~/.ssh/known_hosts"
	}
	var client *ssh.Client
	for _, h := range hops {
		next, err := dialHop(ctx, client, h, expandHome(known), len(t.Identity) > 0)
		if err != nil {
			if client != nil {
				_ = client.Close() // the error that matters is the one above
			}
			return nil, err
		}
		if before := client; before != nil {
			go func() {
				_ = next.Wait()
				_ = before.Close()
			}()
		}
		client = next
	}
	go keepAlive(client)
	return client, nil
}

func dialHop(ctx context.Context, through *ssh.Client, h hop, known string, explicit bool) (*ssh.Client, error) {
	fail := func(err error) (*ssh.Client, error) {
		return nil, fmt.Errorf("ssh %s@%s: %w", h.user, h.address(), err)
	}
	check, algorithms, err := hostKeys(known, h.address())
	if err != nil {
		return fail(err)
	}
	keys, err := openKeys(h, explicit)
	if err != nil {
		return nil, err
	}
	defer keys.close()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var conn net.Conn
	if through != nil {
		conn, err = through.DialContext(ctx, "tcp", h.address())
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", h.address())
	}
	if err != nil {
		return fail(err)
	}
	// The handshake has no context of its own.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c, channels, requests, err := ssh.NewClientConn(conn, h.address(), &ssh.ClientConfig{
		User: h.user, Auth: keys.methods, HostKeyCallback: check, HostKeyAlgorithms: algorithms,
	})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		switch ended := ctx.Err(); {
		case errors.Is(ended, context.Canceled):
			err = ended
		case ended != nil:
			err = fmt.Errorf("no answer in %v: %w", dialTimeout, err)
		}
		if strings.Contains(err.Error(), "unable to authenticate") {
			err = fmt.Errorf("%w; keys offered: the agent's and %s; %s", err, strings.Join(h.identity, ", "), strings.Join(keys.hints, "; "))
		}
		return fail(err)
	}
	return ssh.NewClient(c, channels, requests), nil
}

// keepAlive asks the server for a sign of life now and then, and closes a connection on which none comes: calls that wait
// for a host that is gone end so.
func keepAlive(client *ssh.Client) {
	tick := time.NewTicker(keepalive)
	defer tick.Stop()
	closed := make(chan struct{})
	go func() {
		_ = client.Wait()
		close(closed)
	}()
	for {
		select {
		case <-closed:
			return
		case <-tick.C:
		}
		timer := time.AfterFunc(2*keepalive, func() { _ = client.Close() })
		_, _, err := client.SendRequest(keepaliveAsk, true, nil)
		timer.Stop()
		if err != nil {
			return
		}
	}
}

// knownHostsHint says how a host becomes known.
func knownHostsHint(known, address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, strconv.Itoa(sshPort)
	}
	return fmt.Sprintf("compare the fingerprint with what the host's owner says, then: ssh-keyscan -p %s %s >> %s", port, spell.Quote(host), spell.Quote(filepath.Clean(known)))
}
