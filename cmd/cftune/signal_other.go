//go:build !unix

package main

// askForCheckpoints: there is no signal for it here.
func askForCheckpoints() (<-chan struct{}, func()) { return nil, func() {} }
