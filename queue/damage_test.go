package queue

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// flips is how many bytes the rot test turns over.
var flips = flag.Int("flips", 0, "bytes to flip, one per run; 0 chooses by -short")

const rotDir = "data/spool"

// rotted is a stopped spool with something of everything in it.
type rotted struct {
	fs     *vfs.MemFS
	bodies map[message.ID][]byte
	names  map[stormKey]bool
	now    time.Time
}

func rotOptions(fs vfs.FS) store.Options {
	return store.Options{
		FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20,
	}
}

// fill writes n messages; every third waits for a later time.
func (w *rotted) fill(t *testing.T, m *Manager, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		id := message.ID{0: 1, 14: byte(i >> 8), 15: byte(i)}
		s := &message.Submission{
			Message:    &message.Message{ID: id, Tenant: "acme", Pool: "p", From: message.MustAddress("s@sender.example"), Accepted: w.now},
			Body:       bytes.Repeat([]byte(id.String()+fmt.Sprint(i)), 1+i%7*40),
			Recipients: []message.Recipient{{Address: message.MustAddress(fmt.Sprintf("a%d@d%d.example", i, i%5))}, {Address: message.MustAddress("b@d9.example")}},
		}
		if i%3 == 0 {
			s.Message.NotBefore = w.now.Add(time.Duration(i) * time.Second)
		}
		if err := m.Accept(context.Background(), []*message.Submission{s}); err != nil {
			t.Fatal(err)
		}
		w.bodies[id] = s.Body
		w.names[stormKey{id, 0}], w.names[stormKey{id, 1}] = true, true
	}
}

// newRotted makes the spool: tables, blob files, a log and all the rest.
func newRotted(t *testing.T) *rotted {
	t.Helper()
	w := &rotted{fs: vfs.NewCrashableMem(), bodies: map[message.ID][]byte{}, names: map[stormKey]bool{}, now: time.Unix(1_800_000_000, 0)}
	db, err := store.Open("data", store.Spool, rotOptions(w.fs))
	if err != nil {
		t.Fatal(err)
	}
	m, _ := w.manager(t, db)
	w.fill(t, m, 0, 150)
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	w.fill(t, m, 150, 50)
	if err := errors.Join(m.counts.close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *rotted) manager(t *testing.T, db *store.DB) (*Manager, *live) {
	t.Helper()
	l := &live{s: newStorm(1)}
	cfg := DefaultConfig()
	cfg.BodyCache = 0
	var err error
	l.m, err = New(cfg, Deps{
		DB: db, Recorder: factRecorder{}, Now: func() time.Time { return w.now }, Ready: l.announce,
		Expired: func(it *Item, msg *message.Message) Settlement {
			return Settlement{Item: it, Event: l.m.EventOf(it, msg, message.EventExpired, w.now)}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.m.ctx = t.Context()
	return l.m, l
}

// flip turns one byte of one file over, on a copy.
func (w *rotted) flip(t *testing.T, r *rand.Rand) (fs *vfs.MemFS, name string) {
	t.Helper()
	fs = w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: r})
	names, err := fs.List(rotDir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for {
		name = names[r.IntN(len(names))]
		path := fs.PathJoin(rotDir, name)
		f, err := fs.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			continue
		}
		at := r.IntN(len(data))
		data[at] ^= byte(1 + r.IntN(255))
		out, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(out.Sync(), out.Close()); err != nil {
			t.Fatal(err)
		}
		return fs, fmt.Sprintf("%s:%d", name, at)
	}
}

// outcome is what became of one flipped byte.
type outcome struct {
	refused string // the store does not open, and says this
	lost    bool   // it has opened and says that the end of its log is missing
	named   bool   // damage was met and its file named
	ended   int    // recipients that ended as damaged
	visible int    // recipients that did not end and are named by Verify
	hidden  int    // recipients of which even the keys are unreadable
}

// live opens a spool with a flipped byte and delivers everything in it.
func (w *rotted) live(t *testing.T, fs vfs.FS) (o outcome, err error) {
	t.Helper()
	db, err := store.Open("data", store.Spool, rotOptions(fs))
	if err != nil {
		return outcome{refused: err.Error()}, nil
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := Verify(db); err != nil {
		return o, fmt.Errorf("verify: %w", err)
	}
	o.lost = db.Lost() != nil
	began := w.now
	defer func() { w.now = began }()
	m, l := w.manager(t, db)
	if err := errors.Join(m.count(t.Context()), m.dropPending()); err != nil {
		return o, err
	}
	ended := map[stormKey]bool{}
	for _, later := range []time.Duration{0, time.Hour, m.Config().MaxAge, 2 * m.Config().MaxAge} {
		w.now = began.Add(later)
		for {
			moved, _, err := m.promote(w.now)
			if err != nil {
				return o, fmt.Errorf("promote: %w", err)
			}
			if moved < promoteChunk {
				break
			}
		}
		if err := m.searchDisk(t.Context()); err != nil {
			return o, fmt.Errorf("search: %w", err)
		}
		for m.wg.Wait(); ; m.wg.Wait() {
			q := l.next()
			if q == nil {
				break
			}
			for items := q.Lease(8); items != nil; items = q.Lease(8) {
				_, body, err := m.Load(items)
				if errors.Is(err, ErrDamaged) {
					if err := m.Abandon(items, err); err != nil {
						return o, err
					}
					continue
				}
				if err != nil {
					return o, err
				}
				if !bytes.Equal(body, w.bodies[items[0].ID]) {
					return o, fmt.Errorf("the body of %s was handed out altered", items[0].ID)
				}
				list := make([]Settlement, len(items))
				for i, it := range items {
					if want := w.address(it.ID, it.Recipient.N); it.Recipient.Address.String() != want {
						return o, fmt.Errorf("%s is for %s, want %s", message.RecipientID(it.ID, it.Recipient.N), it.Recipient.Address, want)
					}
					list[i] = Settlement{Item: it, Event: m.Event(it, message.EventDelivered, w.now)}
				}
				if err := m.Settle(list); err != nil {
					return o, err
				}
				m.wg.Wait()
			}
		}
		if err := m.expire(t.Context(), w.now); err != nil {
			return o, fmt.Errorf("expire: %w", err)
		}
	}
	_, err = db.EachReadable(store.JournalSpan(0, ^uint64(0)), func(_, v []byte) (bool, error) {
		k, f, err := parseFact(v)
		if err == nil && f.terminal {
			key := stormKey{k.id, k.n}
			if ended[key] {
				return false, fmt.Errorf("%s has two final events", message.RecipientID(k.id, k.n))
			}
			ended[key] = true
			if f.typ == message.EventBounced {
				o.ended++
			}
		}
		return true, err
	})
	if err != nil {
		return o, err
	}
	o.named = len(db.DamagedFiles()) > 0
	rep, err := Verify(db)
	if err != nil {
		return o, err
	}
	for key := range w.names {
		name := key.id.String()
		visible := slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, name) })
		switch {
		case ended[key] || o.lost:
		case visible:
			o.visible++
		case len(rep.Damaged) > 0:
			o.hidden++ // with its keys; the report names the file
		default:
			return o, fmt.Errorf("%s has no final event and the report knows of no damage (%d recipients, %q)", name, rep.Recipients, rep.Problems)
		}
	}
	if !o.named && o.ended > 0 {
		return o, fmt.Errorf("%d recipients ended as damaged and no file is named", o.ended)
	}
	return o, nil
}

func (w *rotted) address(id message.ID, n uint32) string {
	if n == 1 {
		return "b@d9.example"
	}
	i := int(id[14])<<8 | int(id[15])
	return fmt.Sprintf("a%d@d%d.example", i, i%5)
}

// TestFlippedByteIsNeverDeliveredAltered turns over one byte of a stopped spool,
// again and again, in any of its files. Either the spool does not open and says
// which file is to blame, or everything in it is delivered as it was accepted or
// ends with an event that says why not, or is named by Verify; a recipient whose
// very keys are gone shows as a damaged file.
func TestFlippedByteIsNeverDeliveredAltered(t *testing.T) {
	t.Parallel()
	n := *flips
	if n == 0 {
		n = int(shortened(100, 6, 3))
	}
	w := newRotted(t)
	seed := seedFrom(t, "TRADEWIND_ROT_SEED")
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 8))
	var refused, lost, named, harmless, ended, visible, hidden int
	for range n {
		fs, where := w.flip(t, r)
		file, _, _ := strings.Cut(where, ":")
		o, err := w.live(t, fs)
		switch {
		case err != nil:
			t.Errorf("%s: %v", where, err)
		case o.refused != "":
			refused++
			if ext := filepath.Ext(file); ext == ".sst" || ext == ".blob" {
				t.Errorf("%s: the store does not open: %s", where, o.refused)
			}
			if !strings.Contains(o.refused, file) && !strings.Contains(o.refused, strings.TrimSuffix(file, ".sst")) {
				t.Errorf("%s: the store does not open and names another file: %s", where, o.refused)
			}
		case o.lost:
			lost++
		case o.named:
			named++
		default:
			harmless++
		}
		ended, visible, hidden = ended+o.ended, visible+o.visible, hidden+o.hidden
	}
	t.Logf("%d flips: %d refused by name, %d named while the rest lived on, %d lost ends of the log reported, %d without consequence; of %d recipients %d ended as damaged, %d did not end and are named, %d lay with their keys where nothing can be read",
		n, refused, named, lost, harmless, n*len(w.names), ended, visible, hidden)
}

func TestDiskThatCannotBeReadIsNotTakenForDamage(t *testing.T) {
	t.Parallel()
	w := newRotted(t)
	for _, ext := range []string{".sst", ".blob"} {
		var broken atomic.Bool
		fs := errorfs.Wrap(w.fs.CrashClone(vfs.CrashCloneCfg{}), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && strings.HasSuffix(op.Path, ext) && op.Kind.ReadOrWrite() == errorfs.OpIsRead {
				return errInjected
			}
			return nil
		}))
		opt := rotOptions(fs)
		opt.CacheBytes = 1 // so that reads reach the disk
		db, err := store.Open("data", store.Spool, opt)
		if err != nil {
			t.Fatal(err)
		}
		m, _ := w.manager(t, db)
		broken.Store(true)
		failed := false
		for id, body := range w.bodies {
			_, err := m.Message(id)
			if err == nil {
				_, err = m.Body(id, len(body))
			}
			if err == nil {
				continue
			}
			failed = true
			if !errors.Is(err, store.ErrDead) || errors.Is(err, ErrDamaged) {
				t.Errorf("%s: got %v, want ErrDead and no word of damage", ext, err)
			}
			break
		}
		if !failed {
			t.Errorf("%s: everything could be read", ext)
		}
	}
}
