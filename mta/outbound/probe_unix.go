//go:build unix

package outbound

import "syscall"

// peek looks at a socket without taking anything from it. known is false when
// c is no socket.
func peek(c any) (quiet, known bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, true
	}
	var buf [1]byte
	err = rc.Read(func(fd uintptr) bool {
		// The descriptor is non-blocking: EAGAIN is what an idle peer that is
		// still there looks like. Anything to read is a 421 or an end.
		_, _, e := syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK)
		quiet = e == syscall.EAGAIN
		return true
	})
	return quiet && err == nil, true
}
