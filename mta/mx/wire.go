package mx

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"
)

// exchange is Deps.Exchange over sockets. Each query has a socket, and so a
// random source port, of its own (RFC 5452, 9.2); a UDP socket is connected,
// so the kernel drops what comes from any other peer.
func exchange(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
	wire, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("mx: pack query: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	// A deadline does not hear of a cancelled context. This comes second, so that
	// the one above cannot undo it.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		return exchangeTCP(conn, wire)
	}
	return exchangeUDP(conn, q, wire)
}

// exchangeUDP waits for the packet that answers q and ignores all others: one
// forged or late packet must not keep the true answer out. How many it reads
// is bounded, so a flood costs little.
func exchangeUDP(conn net.Conn, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for range 64 {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < 12 || binary.BigEndian.Uint16(buf) != q.Id {
			continue
		}
		m := new(dns.Msg)
		// A truncated packet may end anywhere; its flags are all we need.
		err = m.Unpack(buf[:n])
		if matches(q, m) != nil {
			continue
		}
		if err != nil && !m.Truncated {
			return nil, fmt.Errorf("%w: %w", errMismatch, err)
		}
		return m, nil
	}
	return nil, errMismatch
}

func exchangeTCP(conn net.Conn, wire []byte) (*dns.Msg, error) {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	if _, err := conn.Write(append(framed, wire...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf); err != nil {
		return nil, fmt.Errorf("%w: %w", errMismatch, err)
	}
	return m, nil
}
