package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/suppression"
)

// stuckFS is a disk on which, once broken, syncing the spool never comes back
// and syncing the ledger fails.
type stuckFS struct {
	vfs.FS
	broken atomic.Bool
	hangs  chan struct{} // closed when somebody hangs
	forget chan struct{} // never closed
}

func (fs *stuckFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, ".log") {
		return f, err
	}
	return &stuckLog{File: f, fs: fs, spool: strings.Contains(name, "spool")}, nil
}

type stuckLog struct {
	vfs.File
	fs    *stuckFS
	spool bool
}

func (f *stuckLog) trouble() error {
	switch {
	case !f.fs.broken.Load():
		return nil
	case f.spool:
		close(f.fs.hangs)
		<-f.fs.forget
	}
	return syscall.EIO
}

func (f *stuckLog) Sync() error { return errors.Join(f.trouble(), f.File.Sync()) }

func (f *stuckLog) SyncData() error { return errors.Join(f.trouble(), f.File.SyncData()) }

func (f *stuckLog) SyncTo(n int64) (bool, error) {
	if err := f.trouble(); err != nil {
		return false, err
	}
	return f.File.SyncTo(n)
}

// TestStorageFailureEndsTheEngineThoughASessionHangsInItsCommit has one client
// wait for an acknowledgement that never comes while the other store fails.
func TestStorageFailureEndsTheEngineThoughASessionHangsInItsCommit(t *testing.T) {
	t.Parallel()
	fs := &stuckFS{FS: vfs.NewCrashableMem(), hangs: make(chan struct{}), forget: make(chan struct{})}
	cfg, err := configs.Parse("test", []byte(`
hostname = "mta.example"
data_dir = "data"
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[[route]]
domains = ["*"]
next_hops = ["127.0.0.1:1"]
`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg, Options{FS: fs, Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(context.Background()) }()

	c, err := net.Dial("tcp", a.SMTPAddr(0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, line := range []string{"", "HELO client.example", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "DATA"} {
		if line != "" {
			fmt.Fprintf(c, "%s\r\n", line)
		}
		if reply, err := r.ReadString('\n'); err != nil || reply[0] > '3' {
			t.Fatalf("%s: %q, %v", line, reply, err)
		}
	}
	fs.broken.Store(true)
	fmt.Fprintf(c, "From: a@example.com\r\nSubject: x\r\n\r\nx\r\n.\r\n")
	refused := make(chan string, 1)
	go func() {
		reply, _ := r.ReadString('\n')
		refused <- reply
	}()
	select {
	case <-fs.hangs:
	case reply := <-refused:
		t.Fatalf("the message was answered with %q before its commit was done", reply)
	}
	addr, err := message.ParseAddress("c@example.net")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.list.Add(suppression.Addition{Address: addr, Reason: suppression.Manual}); err == nil {
		t.Error("got no error from a disk that cannot sync")
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrStorage) {
			t.Errorf("got %v, want ErrStorage", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the engine does not end")
	}
}
