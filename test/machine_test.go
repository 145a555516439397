package test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// machine is what one run of the engine stands on: a disk and a network that
// can be taken away from it in one moment.
type machine struct {
	world *world
	mem   *vfs.MemFS
	disk  *disk
	dead  atomic.Bool

	mu        sync.Mutex // protects everything below
	listeners map[string]*loadgen.Listener
	conns     map[net.Conn]struct{}
}

func newMachine(w *world, mem *vfs.MemFS) *machine {
	return &machine{
		world: w, mem: mem, disk: newDisk(mem),
		listeners: make(map[string]*loadgen.Listener), conns: make(map[net.Conn]struct{}),
	}
}

var errCut = errors.New("the machine is off")

// cut takes the machine off the network: every connection is lost and none can
// be made.
func (m *machine) cut() {
	m.dead.Store(true)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.listeners {
		l.Close()
	}
	for c := range m.conns {
		c.Close()
	}
	m.disk.open()
}

// after is what is on the disk when the machine comes back: everything after a
// mere end of the process, only what was synced after a power cut.
func (m *machine) after(powerCut bool) *vfs.MemFS {
	cfg := vfs.CrashCloneCfg{}
	if !powerCut {
		cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))}
	}
	return m.mem.CrashClone(cfg)
}

// keep remembers a connection for as long as the engine has it open.
func (m *machine) keep(c net.Conn, local, remote string) net.Conn {
	k := &conn{Conn: c, m: m, local: tcpAddr(local), remote: tcpAddr(remote)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[k] = struct{}{}
	if m.dead.Load() {
		c.Close()
	}
	return k
}

// conn is a connection in memory with the addresses of a real one.
type conn struct {
	net.Conn
	m             *machine
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite ends what the peer reads.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	if c.m.dead.Load() {
		return err // cut has the list
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	delete(c.m.conns, c)
	return err
}

func tcpAddr(s string) net.Addr {
	a, err := net.ResolveTCPAddr("tcp", s) // an address, so no look-up
	if err != nil {
		panic(err)
	}
	return a
}

// foreignAddress is one that no machine of a story has.
const foreignAddress = "198.51.100.66"

// dial is how the engine connects to mail hosts.
func (m *machine) dial(ctx context.Context, src *mta.Source, _, addr string, _ bool) (net.Conn, error) {
	if m.dead.Load() {
		return nil, errCut
	}
	if src.Address == foreignAddress {
		return nil, errors.New("cannot assign requested address")
	}
	c, err := m.world.connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	local := "198.51.100.1:40000"
	if src.Address != "" {
		local = net.JoinHostPort(src.Address, "40000")
	}
	return m.keep(c, local, addr), nil
}

// exchange is how the engine asks the DNS.
func (m *machine) exchange(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
	if m.dead.Load() {
		return nil, errCut
	}
	return m.world.zone.Exchange(ctx, q, network, server)
}

// listen is how the engine binds its listeners.
func (m *machine) listen(_, addr string) (net.Listener, error) {
	l := loadgen.Listen()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners[addr] = l
	return &listener{l, m, addr}, nil
}

type listener struct {
	*loadgen.Listener
	m    *machine
	addr string
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.m.keep(c, l.addr, "127.0.0.1:50000"), nil
}

func (l *listener) Addr() net.Addr { return tcpAddr(l.addr) }

// client connects to a listener of the engine.
func (m *machine) client(ctx context.Context, addr string) (net.Conn, error) {
	m.mu.Lock()
	l := m.listeners[addr]
	m.mu.Unlock()
	if l == nil || m.dead.Load() {
		return nil, errors.New("connection refused")
	}
	return l.Dial(ctx, "tcp", addr)
}

// disk is a file system whose free space and whose syncs of the log a story
// controls.
type disk struct {
	vfs.FS
	free atomic.Uint64

	mu   sync.Mutex // protects gate
	gate chan struct{}
}

func newDisk(fs vfs.FS) *disk {
	d := &disk{FS: fs}
	d.free.Store(1 << 40)
	return d
}

// GetDiskUsage tells what the story says.
func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	free := d.free.Load()
	return vfs.DiskUsage{AvailBytes: free, TotalBytes: 1 << 41, UsedBytes: 1<<41 - free}, nil
}

// hold lets no sync of a log come back until open.
func (d *disk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate == nil {
		d.gate = make(chan struct{})
	}
}

func (d *disk) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

func (d *disk) wait() {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

// Create makes a file; the log's goes through the gate.
func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(name)(d.FS.Create(name, c))
}

// ReuseForWrite is Create for a file that is recycled.
func (d *disk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(name)(d.FS.ReuseForWrite(old, name, c))
}

func (d *disk) wrap(name string) func(vfs.File, error) (vfs.File, error) {
	return func(f vfs.File, err error) (vfs.File, error) {
		if err != nil || !strings.HasSuffix(name, ".log") {
			return f, err
		}
		return &logFile{f, d}, nil
	}
}

type logFile struct {
	vfs.File
	d *disk
}

func (f *logFile) Sync() error {
	f.d.wait()
	return f.File.Sync()
}

func (f *logFile) SyncData() error {
	f.d.wait()
	return f.File.SyncData()
}

func (f *logFile) SyncTo(n int64) (bool, error) {
	f.d.wait()
	return f.File.SyncTo(n)
}
