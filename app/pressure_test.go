package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/store"
)

// smallDisk is a file system of a certain size, which it shares with others.
type smallDisk struct {
	vfs.FS
	size   int64
	others atomic.Int64 // bytes of files that are not ours
	full   atomic.Int64 // writes refused
}

func (d *smallDisk) used(dir string) (n int64) {
	names, err := d.List(dir)
	if err != nil {
		return 0
	}
	for _, name := range names {
		path := d.PathJoin(dir, name)
		st, err := d.Stat(path)
		switch {
		case err != nil:
		case st.IsDir():
			n += d.used(path)
		default:
			n += st.Size()
		}
	}
	return n
}

func (d *smallDisk) free() int64 { return max(0, d.size-d.others.Load()-d.used("data")) }

// GetDiskUsage tells the free space.
func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	free := uint64(d.free())
	return vfs.DiskUsage{AvailBytes: free, TotalBytes: uint64(d.size), UsedBytes: uint64(d.size) - free}, nil
}

func (d *smallDisk) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return smallFile{f, d}, nil
}

// Create makes a file.
func (d *smallDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.Create(name, c))
}

// OpenReadWrite opens a file, or makes it.
func (d *smallDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return d.wrap(d.FS.OpenReadWrite(name, c, o...))
}

// ReuseForWrite makes a file of another.
func (d *smallDisk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.ReuseForWrite(old, name, c))
}

type smallFile struct {
	vfs.File
	d *smallDisk
}

func (f smallFile) refuse(n int) error {
	if int64(n) <= f.d.free() {
		return nil
	}
	f.d.full.Add(1)
	return syscall.ENOSPC
}

// Write appends, if there is room.
func (f smallFile) Write(p []byte) (int, error) {
	if err := f.refuse(len(p)); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

// WriteAt writes, if there is room.
func (f smallFile) WriteAt(p []byte, at int64) (int, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := f.refuse(int(at) + len(p) - int(st.Size())); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, at)
}

// small is a configuration with little of everything and no doors.
func small(t *testing.T) *configs.Config {
	t.Helper()
	cfg, err := configs.Parse("test", []byte(`
hostname = "mta.example"
data_dir = "data"
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[store]
cache = "1MiB"
memtable = "1MiB"
low_space = "8MiB"
ballast = "4MiB"
stall = "1s"
commit_memory = "1MiB"
[delivery]
retry_connection = "100ms"
host_down = "100ms"
[queue]
retry = ["1s"]
[[route]]
domains = ["*"]
next_hops = ["192.0.2.1:25"]
tls = "off"
`))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// begin runs an engine until the returned function is called.
func begin(t *testing.T, cfg *configs.Config, opt Options) (a *App, end func()) {
	t.Helper()
	opt.Memory = true
	a, err := New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func submission(n, size int) *message.Submission {
	return &message.Submission{
		Message: &message.Message{
			ID: message.ID{0: 1, 15: byte(n)}, Tenant: configs.DefaultTenant, Accepted: time.Now(), From: message.MustAddress("s@sender.example"),
		},
		Body:       []byte("Subject: x\r\n\r\n" + strings.Repeat("0123456\r\n", size/9)),
		Recipients: []message.Recipient{{Address: message.MustAddress("u@rcpt.example"), ReturnPath: message.MustAddress("s@sender.example")}},
	}
}

// until waits for something that must come within the limit.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func TestFullDiskAtTheStartIsDrainedAndTakesMailAgainByItself(t *testing.T) {
	t.Parallel()
	disk := &smallDisk{FS: vfs.NewCrashableMem(), size: 64 << 20}
	refused := func(context.Context, *mta.Source, string, string, bool) (net.Conn, error) {
		return nil, syscall.ECONNREFUSED
	}
	a, end := begin(t, small(t), Options{FS: disk, Dial: refused})
	const messages = 20
	for i := range messages {
		if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(i, 20<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	if a.ballast.Missing() != 0 {
		t.Error("there is no ballast on a disk with room")
	}
	end()

	disk.others.Store(disk.free())
	var received atomic.Int64
	sink, err := loadgen.New(loadgen.SinkConfig{OnMessage: func(*loadgen.Received) { received.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	pipe := loadgen.Listen()
	go sink.Serve(pipe)
	defer sink.Shutdown(context.Background())
	a, end = begin(t, small(t), Options{FS: disk, Dial: func(ctx context.Context, _ *mta.Source, network, addr string, _ bool) (net.Conn, error) {
		return pipe.Dial(ctx, network, addr)
	}})
	defer end()
	if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(100, 1<<10)}); !errors.Is(err, message.ErrFull) {
		t.Errorf("got %v from a full disk, want ErrFull", err)
	}
	if r := a.pressure.smtp(); r == nil || r.Code != 452 {
		t.Errorf("got %v at the door, want 452", r)
	}
	until(t, 30*time.Second, "delivery on a full disk", func() bool {
		return received.Load() == messages && a.queue.Stats().Waiting == 0
	})
	if a.ballast.Missing() == 0 || a.pressure.err() == nil {
		t.Error("the ballast is back on a full disk, or mail is taken")
	}
	disk.others.Store(0)
	until(t, 5*time.Second, "taking mail again", func() bool { return a.pressure.err() == nil })
	if a.ballast.Missing() != 0 {
		t.Error("mail is taken without the ballast")
	}
	if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(101, 1<<10)}); err != nil {
		t.Error(err)
	}
	if n := disk.full.Load(); n != 0 {
		t.Errorf("%d writes met the full disk; the engine must stop before", n)
	}
}

func TestDiskWithoutAnyRoomIsRefusedByNameInsteadOfHanging(t *testing.T) {
	t.Parallel()
	disk := &smallDisk{FS: vfs.NewCrashableMem(), size: 64 << 20}
	cfg := small(t)
	cfg.Store.Ballast = 0
	_, end := begin(t, cfg, Options{FS: disk})
	end()
	disk.others.Store(disk.free())
	if _, err := New(cfg, Options{FS: disk, Memory: true}); !errors.Is(err, store.ErrNoRoom) {
		t.Errorf("got %v, want ErrNoRoom", err)
	}
}

// TestMailIsRefusedWhileTheDiskDoesNotAnswer has the syncs of the log hang: what
// waits goes on waiting, more is refused, and afterwards all is well by itself.
func TestMailIsRefusedWhileTheDiskDoesNotAnswer(t *testing.T) {
	t.Parallel()
	var gate atomic.Pointer[chan struct{}]
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if shut := gate.Load(); shut != nil && op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, ".log") {
			<-*shut
		}
		return nil
	}))
	refused := func(context.Context, *mta.Source, string, string, bool) (net.Conn, error) {
		return nil, fmt.Errorf("nobody there: %w", syscall.ECONNREFUSED)
	}
	a, end := begin(t, small(t), Options{FS: fs, Dial: refused})
	defer end()
	shut := make(chan struct{})
	gate.Store(&shut)
	first := make(chan error, 1)
	go func() { first <- a.pressure.Accept(t.Context(), []*message.Submission{submission(1, 900<<10)}) }()
	until(t, 10*time.Second, "a commit that hangs", func() bool { return a.pressure.bytes.Load() > 0 && a.spool.Committing() > 0 })
	if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(2, 200<<10)}); !errors.Is(err, errWaiting) || !errors.Is(err, message.ErrBusy) {
		t.Errorf("got %v beyond the memory for commits, want errWaiting", err)
	}
	until(t, 10*time.Second, "refusal", func() bool { return errors.Is(a.pressure.err(), errStalled) })
	if r := a.pressure.smtp(); r == nil || r.Code != 421 {
		t.Errorf("got %v at the door, want 421", r)
	}
	gate.Store(nil)
	close(shut)
	if err := <-first; err != nil {
		t.Errorf("got %v for mail that waited, want it accepted", err)
	}
	until(t, 2*time.Second, "taking mail again", func() bool { return a.pressure.err() == nil })
	if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(3, 200<<10)}); err != nil {
		t.Error(err)
	}
}

// TestSpoolThatCannotCompactTakesNoMailAndDeliversWhatItHas puts a damaged table
// under so many others that the spool is behind, for good.
func TestSpoolThatCannotCompactTakesNoMailAndDeliversWhatItHas(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	refused := func(context.Context, *mta.Source, string, string, bool) (net.Conn, error) {
		return nil, syscall.ECONNREFUSED
	}
	a, end := begin(t, small(t), Options{FS: fs, Dial: refused})
	const messages = 20
	for i := range messages {
		if err := a.pressure.Accept(t.Context(), []*message.Submission{submission(i, 20<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	end()

	// Bodies without a message lie over each other.
	open := func() *store.DB {
		db, err := store.Open("data", store.Spool, store.Options{FS: fs, MemTableBytes: 256 << 10})
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	ids := &message.IDSource{}
	when := time.Unix(1, 0)
	first, last := ids.New(when), ids.New(when.Add(time.Hour))
	write := func(db *store.DB) {
		b := db.NewBatch(0)
		defer b.Close()
		for n := range uint32(100) {
			b.Set(store.BodyKey(nil, first, n), []byte("first"))
			b.Set(store.BodyKey(nil, last, n), []byte("last"))
		}
		if err := errors.Join(b.Commit(), db.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	db := open()
	err := db.Flush()
	before, listErr := fs.List("data/spool")
	if err = errors.Join(err, listErr); err != nil {
		t.Fatal(err)
	}
	write(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("data/spool")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") && !slices.Contains(before, name) {
			flip(t, fs, "data/spool/"+name)
		}
	}
	for db = open(); db.Uncompacted() < mostUncompacted; {
		write(db)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	var received atomic.Int64
	sink, err := loadgen.New(loadgen.SinkConfig{OnMessage: func(*loadgen.Received) { received.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	pipe := loadgen.Listen()
	go sink.Serve(pipe)
	defer sink.Shutdown(context.Background())
	a, end = begin(t, small(t), Options{FS: fs, Dial: func(ctx context.Context, _ *mta.Source, network, addr string, _ bool) (net.Conn, error) {
		return pipe.Dial(ctx, network, addr)
	}})
	defer end()
	until(t, 5*time.Second, "refusal", func() bool {
		err := a.pressure.Accept(t.Context(), []*message.Submission{submission(100, 1<<10)})
		return errors.Is(err, errBehind) && errors.Is(err, message.ErrBusy)
	})
	if r := a.pressure.smtp(); r == nil || r.Code != 421 {
		t.Errorf("got %v at the door, want 421", r)
	}
	until(t, 30*time.Second, "delivery", func() bool { return received.Load() >= messages && a.queue.Stats().Waiting == 0 })
}

// flip damages a file in its middle.
func flip(t *testing.T, fs vfs.FS, name string) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	var b [1]byte
	if err == nil {
		_, err = f.ReadAt(b[:], st.Size()/3)
	}
	if err == nil {
		b[0] ^= 0x55
		_, err = f.WriteAt(b[:], st.Size()/3)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
