//go:build !unix

package outbound

func peek(any) (quiet, known bool) { return false, false }
