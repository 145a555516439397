package outbound

import "time"

const (
	// lingerFor is how long a socket that is done with waits for the server to
	// close its end as well.
	lingerFor = 2 * time.Second
	// lingerMost is how much a server may still say meanwhile.
	lingerMost = 64 << 10
)

// linger waits until the server has closed its end of the connection too, for
// lingerFor at the most. A server counts a connection until it has seen the end
// of it itself, so a permit that was given back with our own close would let the
// next connection arrive while this one is still counted: one too many. The
// server learns of the end by QUIT or by the end of our half.
func (c *Conn) linger(said bool) {
	if c.parted {
		return
	}
	c.parted = true
	half, ok := c.raw.(interface{ CloseWrite() error })
	switch {
	case ok && half.CloseWrite() != nil:
		return // gone already
	case !ok && !said:
		return // it cannot know, so waiting for it would be in vain
	}
	c.raw.SetReadDeadline(time.Now().Add(lingerFor))
	var b [512]byte
	for n := 0; n < lingerMost; {
		k, err := c.raw.Read(b[:])
		if n += k; err != nil {
			return
		}
	}
}
