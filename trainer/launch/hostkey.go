package launch

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// HostKeyError says that a server's key is not the one that is known, or that none is known.
type HostKeyError struct {
	Address string
	// Fingerprint is that of the key that was shown.
	Type, Fingerprint string
	// Known are the fingerprints that would have been right; none: the host is unknown.
	Known []string
	File  string
	// Revoked: the key is marked as one that must not be used.
	Revoked bool
}

func (e *HostKeyError) Error() string {
	shown := fmt.Sprintf("%s %s", e.Type, e.Fingerprint)
	switch {
	case e.Revoked:
		return fmt.Sprintf("host key of %s: %s is marked as revoked in %s", e.Address, shown, e.File)
	case len(e.Known) > 0:
		return fmt.Sprintf("host key of %s has changed: it shows %s, %s has %s; somebody may be in between", e.Address, shown, e.File, e.Known)
	}
	return fmt.Sprintf("host key of %s is unknown: it shows %s, and %s has none for it", e.Address, shown, e.File)
}

// Hint is what can be done about it.
func (e *HostKeyError) Hint() string {
	if e.Revoked || len(e.Known) > 0 {
		return fmt.Sprintf("ask the host's owner; if the key was changed on purpose, take the old line out of %s and add the new one", e.File)
	}
	return knownHostsHint(e.File, e.Address)
}

// hostKeys returns the check of a server's key against a known_hosts file, and the algorithms to ask for: those of the keys
// that are known, since another kind of key would look like a changed one.
func hostKeys(known, address string) (ssh.HostKeyCallback, []string, error) {
	check, err := knownhosts.New(known)
	if errors.Is(err, fs.ErrNotExist) {
		check = func(string, net.Addr, ssh.PublicKey) error { return &knownhosts.KeyError{} }
	} else if err != nil {
		return nil, nil, &UsageError{fmt.Errorf("known hosts: %w", err)}
	}
	algorithms, err := knownAlgorithms(check, address)
	if err != nil {
		return nil, nil, err
	}
	return func(name string, remote net.Addr, key ssh.PublicKey) error {
		err := check(name, remote, key)
		if err == nil {
			return nil
		}
		e := &HostKeyError{Address: address, Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key), File: known}
		var wrong *knownhosts.KeyError
		var revoked *knownhosts.RevokedError
		switch {
		case errors.As(err, &revoked):
			e.Revoked = true
		case errors.As(err, &wrong):
			for _, k := range wrong.Want {
				e.Known = append(e.Known, k.Key.Type()+" "+ssh.FingerprintSHA256(k.Key))
			}
		default:
			return err
		}
		return e
	}, algorithms, nil
}

// knownAlgorithms asks the check about a key that no host has; it answers with the keys that it knows.
func knownAlgorithms(check ssh.HostKeyCallback, address string) ([]string, error) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	nobody, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	var wrong *knownhosts.KeyError
	if !errors.As(check(address, &net.TCPAddr{IP: net.IPv4zero}, nobody), &wrong) {
		return nil, nil
	}
	var algorithms []string
	add := func(names ...string) {
		for _, name := range names {
			if !slices.Contains(algorithms, name) {
				algorithms = append(algorithms, name)
			}
		}
	}
	for _, k := range wrong.Want {
		if bytes.Equal(k.Key.Marshal(), nobody.Marshal()) {
			continue
		}
		if k.Key.Type() == ssh.KeyAlgoRSA {
			add(ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		add(k.Key.Type())
	}
	return algorithms, nil
}
