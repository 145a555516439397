package zonetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server serves a Zone over UDP and TCP on one port.
type Server struct {
	zone   *Zone
	udp    net.PacketConn
	tcp    net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // protects conns
	conns map[net.Conn]bool
}

// Listen serves the zone on addr, such as "127.0.0.1:0", until Close.
func (z *Zone) Listen(addr string) (*Server, error) {
	tcp, udp, err := listenBoth(addr)
	if err != nil {
		return nil, fmt.Errorf("zonetest: listen on %s: %w", addr, err)
	}
	s := &Server{zone: z, udp: udp, tcp: tcp, conns: make(map[net.Conn]bool)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.serveUDP)
	s.wg.Go(s.serveTCP)
	return s, nil
}

// listenBoth takes one port for both protocols. The port the system picks for
// one may be taken in the other, hence several tries.
func listenBoth(addr string) (net.Listener, net.PacketConn, error) {
	for try := 0; ; try++ {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
		if try == 9 {
			return nil, nil, err
		}
	}
}

// Addr is the address listened on, for mx.Config.Servers.
func (s *Server) Addr() string { return s.tcp.Addr().String() }

// Close stops the server and waits for it.
func (s *Server) Close() error {
	s.cancel()
	s.udp.Close()
	err := s.tcp.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func (s *Server) serveUDP() {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, peer, err := s.udp.ReadFrom(buf)
		if s.ctx.Err() != nil {
			return
		}
		q := new(dns.Msg)
		if err != nil || q.Unpack(buf[:n]) != nil {
			continue
		}
		s.wg.Go(func() {
			if wire := s.handle(q, "udp"); wire != nil {
				s.udp.WriteTo(wire, peer) // a client that went away is not our concern
			}
		})
	}
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serveConn(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func (s *Server) serveConn(c net.Conn) {
	c.SetDeadline(time.Now().Add(time.Minute))
	for s.ctx.Err() == nil {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		buf := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf) != nil {
			return
		}
		wire := s.handle(q, "tcp")
		if wire == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)); err != nil {
			return
		}
	}
}

// handle returns the answer in wire form, or nil for none.
func (s *Server) handle(q *dns.Msg, network string) []byte {
	mode, delay := s.zone.arrive(q, network, s.Addr())
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return nil
		}
	}
	if mode == Timeout || mode == Unreachable {
		return nil
	}
	m := s.zone.respond(q, network, mode)
	m.Compress = true
	wire, err := m.Pack()
	if err != nil || len(wire) > dns.MaxMsgSize {
		return nil
	}
	return wire
}
