//go:build interop && linux

package crash

import (
	"fmt"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// smallFS is an ext4 file system of 64 MiB in a file.
type smallFS struct {
	t   *testing.T
	dir string
}

func mountSmall(t *testing.T) smallFS {
	t.Helper()
	need(t, "mkfs.ext4", "mount", "umount", "fallocate")
	image, dir := filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop mount here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return smallFS{t, dir}
}

func (d smallFS) free() int64 {
	d.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill leaves so many bytes free.
func (d smallFS) fill(name string, leave int64) {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	if n := d.free() - leave; n > 0 {
		if err := syscall.Fallocate(int(f.Fd()), 0, st.Size(), n); err != nil && leave > 0 {
			d.t.Fatal(err)
		}
	}
	if leave > 0 {
		return
	}
	for _, err := f.Seek(0, 2); err == nil; { // the last blocks
		_, err = f.Write(make([]byte, 4096))
	}
}

func (d smallFS) empty(names ...string) {
	d.t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(d.dir, name)); err != nil {
			d.t.Fatal(err)
		}
	}
	syscall.Sync()
}

// offer sends n messages and returns how many of them were accepted and refused.
func offer(t *testing.T, l *ledger, target string, first, n int) (accepted, refused int) {
	t.Helper()
	s := load(l, target)
	s.FirstID, s.Messages, s.Connections = first, n, 1
	s.Run(t.Context()) // it ends with an error when it is refused
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, code := range l.acks {
		if l.phase[id] {
			continue
		}
		l.phase[id] = true
		switch code {
		case 250:
			accepted++
		case 0:
		default:
			refused++
		}
	}
	return accepted, refused
}

// doorSays is the code that a client gets: 421 at the banner, 452 at MAIL.
func doorSays(addr string) string {
	c, err := textproto.Dial("tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	for _, cmd := range []string{"", "EHLO a.example", "MAIL FROM:<a@a.example>"} {
		if cmd != "" {
			if err := c.PrintfLine("%s", cmd); err != nil {
				return err.Error()
			}
		}
		code, _, err := c.ReadResponse(2)
		if err != nil {
			return fmt.Sprint(code)
		}
	}
	return "250"
}

// TestFullDiskRefusesDrainsAndTakesMailAgain fills a real file system under the
// engine, first nearly, then wholly and across a kill.
func TestFullDiskRefusesDrainsAndTakesMailAgain(t *testing.T) {
	disk := mountSmall(t)
	l := newLedger(t, load(nil, ""))
	l.phase = map[string]bool{}
	sinkAddr := freeAddr(t) // nobody listens there yet: mail waits
	data := filepath.Join(disk.dir, "data")
	e := newEngine(t, build(t), data, sinkAddr, "[store]\nlow_space = \"24MiB\"\nballast = \"8MiB\"\nmemtable = \"2MiB\"\ncache = \"2MiB\"\n")
	empty := disk.free()
	e.start()
	e.mustBeReady(time.Minute)
	if used := empty - disk.free(); used < 8<<20 {
		t.Errorf("the engine took %d bytes of the disk: the ballast has no blocks", used)
	}
	if ok, no := offer(t, l, e.smtp, 1<<20, 500); ok != 500 || no != 0 {
		t.Fatalf("%d accepted, %d refused on a disk with room", ok, no)
	}

	// The engine gives room back meanwhile, so the others take it again.
	if !e.poll(10*time.Second, func() bool { disk.fill("others", 12<<20); return strings.HasPrefix(doorSays(e.smtp), "4") }) {
		t.Errorf("a nearly full disk is answered with %q", doorSays(e.smtp))
	}
	at := time.Now()
	e.kill()
	disk.fill("more", 0)
	l.kills = append(l.kills, kill{at: at, open: 0})

	e.start()
	l.kills[0].restarted = time.Now()
	if !e.poll(time.Minute, func() bool { return e.get(t.Context(), "http://"+e.admin+"/healthz", nil) == nil }) {
		t.Fatalf("does not start on a full disk:\n%s", e.tail())
	}
	if _, err := os.Stat(filepath.Join(data, "ballast")); !os.IsNotExist(err) {
		t.Errorf("the ballast is still there (%v)", err)
	}
	if a, _ := offer(t, l, e.smtp, 3<<20, 3); a != 0 {
		t.Errorf("%d messages were accepted on a full disk", a)
	}
	startSinkAt(t, loadgen.SinkConfig{OnMessage: l.onMessage}, sinkAddr)
	if !e.poll(2*time.Minute, func() bool { return l.undelivered() == 0 }) {
		t.Errorf("%d messages are not delivered from a full disk:\n%s", l.undelivered(), e.tail())
	}
	if code := doorSays(e.smtp); !strings.HasPrefix(code, "4") {
		t.Errorf("the door says %q while the disk is full", code)
	}

	disk.empty("others", "more")
	back := time.Now()
	again := e.poll(time.Minute, func() bool {
		a, _ := offer(t, l, e.smtp, 4<<20+int(time.Since(back)/time.Millisecond), 1)
		return a > 0
	})
	if took := time.Since(back); !again || took > 5*time.Second {
		t.Errorf("takes mail again: %v, after %v; want at most 5s", again, took)
	} else {
		t.Logf("takes mail again %v after the space came back", took.Round(time.Millisecond))
	}
	if a, b := offer(t, l, e.smtp, 5<<20, 100); a != 100 {
		t.Errorf("%d accepted, %d refused afterwards, want 100", a, b)
	}
	e.drain(l, time.Minute)
	e.stop()
	e.verify()
	report(t, l.verdict())
}
