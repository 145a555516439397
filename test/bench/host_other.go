//go:build !linux

package main

// watchHost needs Linux.
func watchHost() (stop func() hostWatch) { return func() hostWatch { return hostWatch{} } }
