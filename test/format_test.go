package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/store"
)

// write is a flag: go test ./test -run OfEarlierRelease -args -write
// makes the store of the present format anew. That is right when a release
// changes it on purpose and Format with it; the stores of older formats stay
// what they are for as long as this release promises to read them.
var write = flag.Bool("write", false, "write the store of the present format into testdata")

// formatStore is a data directory as a release leaves it, and what its operator
// knows about it.
var formatStore = fmt.Sprintf("testdata/format-%d.tar.gz", store.Format)

// keysFile is where the archive has the API keys, by tenant.
const keysFile = "keys.json"

// formatZone and formatConfig are what both the release that writes a store and
// the one that reads it run with.
const (
	formatZone = `
a.example. MX 10 mx.a.example.
busy.example. MX 10 mx.a.example.
held.example. MX 10 mx.a.example.
mx.a.example. A 192.0.2.1
`
	formatConfig = "[[tenant]]\nname = \"acme\"\n"
	formatHook   = "https://hooks.example/tradewind"
)

// formatMail is what the store holds, by recipient: what has happened to it
// when the store is written, and what is to happen once it is read.
var formatMail = []struct{ to, more, before, after string }{
	{"delivered@a.example", ``, "accepted delivered", ""},
	{"deferred@busy.example", ``, "accepted deferred", "delivered"},
	{"scheduled@a.example", `,"send_at":"2000-01-03T00:00:00Z"`, "accepted", "delivered"},
	{"held@held.example", ``, "accepted", "delivered"},
	{"large@held.example", `,"headers":{"X-Large":"yes"}`, "accepted", "delivered"}, // its body lies in two chunks and outside the table
	{"suppressed@a.example", ``, "accepted suppressed", ""},
	// From here on the log has it, and no table.
	{"late-scheduled@a.example", `,"send_at":"2000-01-03T00:00:00Z"`, "accepted", "delivered"},
	{"late-deferred@busy.example", ``, "accepted deferred", "delivered"},
}

// inLog is where the ones begin that lie in the log.
const inLog = 6

// formatBody is the request that injects a row.
func formatBody(i int) string {
	m := formatMail[i]
	text := "Number " + fmt.Sprint(i)
	if strings.HasPrefix(m.to, "large") {
		text = strings.Repeat(text+"\\n", 120_000)
	}
	return fmt.Sprintf(`{"from":{"email":"a@sender.example"},"to":[{"email":%q}],"subject":"format","text":"%s","campaign":"winter","metadata":{"row":%d}%s}`, m.to, text, i, m.more)
}

// json asks as a tenant and decodes the answer.
func (w *world) json(tenant, addr, method, target, body, idempotency string, want int, out any) http.Header {
	w.t.Helper()
	header := http.Header{"Content-Type": {"application/json"}}
	if idempotency != "" {
		header.Set("Idempotency-Key", idempotency)
	}
	status, answer, text := w.request(tenant, addr, method, target, []byte(body), header)
	if status != want {
		w.t.Fatalf("%s %s: %d %s, want %d", method, target, status, text, want)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, target, err, text)
		}
	}
	return answer
}

// formatWorld is a world with one mail host, on an empty disk.
func formatWorld(t *testing.T) (*world, *receiver) {
	w := newWorld(t, formatZone, formatConfig)
	mx := newReceiver("mx")
	w.sinks["mx"], w.byIP["192.0.2.1"] = mx, mx
	w.machine = newMachine(w, vfs.NewMem())
	return w, mx
}

// writeFormatStore lives the life of a release that leaves formatMail behind.
func writeFormatStore(t *testing.T) []byte {
	w, mx := formatWorld(t)
	defer w.end()
	w.start()
	w.json("acme", apiAddr, "POST", "/v1/suppressions", `{"email":"suppressed@a.example","reason":"manual"}`, "", http.StatusOK, nil)
	w.json("acme", apiAddr, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"types":["message.bounced"]}`, formatHook), "", http.StatusCreated, nil)
	w.admin("POST", "/v1/suspensions?apply=true", `{"domain":"held.example","reason":"format"}`, 201, nil)
	for i := range formatMail {
		if i == inLog { // opening the store again puts what there is into tables
			w.stop()
			w.start()
		}
		if strings.HasSuffix(formatMail[i].to, "@busy.example") {
			mx.rules = []*rule{{stage: "rcpt", text: "451 4.7.1 come back later", times: 1}}
		}
		w.json("acme", apiAddr, "POST", "/v1/messages", formatBody(i), fmt.Sprint("row", i), http.StatusAccepted, nil)
		time.Sleep(time.Second)
	}
	w.events(nil) // for the operator's key
	w.stop()
	keys, err := json.Marshal(w.apiKeys)
	if err != nil {
		t.Fatal(err)
	}
	return pack(t, w.machine.mem, keys)
}

// pack makes an archive of the data directory.
func pack(t *testing.T, fs vfs.FS, keys []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(z)
	add := func(name string, data []byte) {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add(keysFile, keys)
	var walk func(dir string)
	walk = func(dir string) {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			name = filepath.Join(dir, name)
			if st, err := fs.Stat(name); err != nil {
				t.Fatal(err)
			} else if st.IsDir() {
				walk(name)
				continue
			}
			f, err := fs.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			add(name, data)
		}
	}
	walk("data")
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack puts the files of an archive onto fs and returns the API keys.
func unpack(t *testing.T, packed []byte, fs vfs.FS) (keys map[string]string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return keys
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == keysFile {
			if err := json.Unmarshal(data, &keys); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := fs.MkdirAll(filepath.Dir(h.Name), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := fs.Create(h.Name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkFormatMail compares the events of every row with what should have
// happened.
func (w *world) checkFormatMail(whole bool) {
	w.t.Helper()
	types := map[string][]string{}
	for _, e := range w.events(nil) {
		if e.MessageID == "" {
			continue // of a suppression or a suspension
		}
		types[e.Recipient] = append(types[e.Recipient], strings.TrimPrefix(e.Type, "message."))
		if e.Tenant != "acme" || e.Campaign != "winter" || !strings.Contains(string(e.Metadata), `"row"`) {
			w.t.Errorf("event %+v lost its origin", e)
		}
	}
	for _, m := range formatMail {
		want := m.before
		if whole && m.after != "" {
			want += " " + m.after
		}
		if got := strings.Join(types[m.to], " "); got != want {
			w.t.Errorf("%s: %s; want %s", m.to, got, want)
		}
	}
}

// TestStoreOfEarlierReleaseIsReadWhole opens a data directory that was written
// once and is never written again, and has the engine take up what it finds:
// mail in tables, blob files and the log, keys, suppressions, suspensions,
// webhooks and idempotency keys.
func TestStoreOfEarlierReleaseIsReadWhole(t *testing.T) {
	t.Parallel()
	if *write {
		synctest.Test(t, func(t *testing.T) {
			packed := writeFormatStore(t)
			if err := os.WriteFile(formatStore, packed, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
	packed, err := os.ReadFile(formatStore)
	if err != nil {
		t.Fatalf("%v; a new format needs a store of its own: see -write", err)
	}
	if len(packed) > 200<<10 {
		t.Errorf("%s has %d bytes", formatStore, len(packed))
	}
	synctest.Test(t, func(t *testing.T) {
		w, mx := formatWorld(t)
		defer w.end()
		keys := unpack(t, packed, w.machine.disk)
		files, err := w.machine.disk.List("data/spool")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{".sst", ".blob", ".log"} {
			if !slices.ContainsFunc(files, func(name string) bool { return filepath.Ext(name) == kind }) {
				t.Errorf("no %s among the files of the spool %q", kind, files)
			}
		}
		if keys["acme"] == "" || keys[""] == "" {
			t.Fatalf("the archive has the keys %v", keys)
		}
		w.apiKeys = keys
		time.Sleep(time.Minute) // after the release that wrote it
		w.verify()
		w.start()
		w.checkFormatMail(false)

		var hooks struct {
			Webhooks []struct{ URL, State string }
		}
		w.json("acme", apiAddr, "GET", "/v1/webhooks", "", "", 200, &hooks)
		if len(hooks.Webhooks) != 1 || hooks.Webhooks[0].URL != formatHook || hooks.Webhooks[0].State != "running" {
			t.Errorf("webhooks: %+v", hooks)
		}
		for i, m := range formatMail {
			answer := w.json("acme", apiAddr, "POST", "/v1/messages", formatBody(i), fmt.Sprint("row", i), http.StatusAccepted, nil)
			if answer.Get("Idempotent-Replayed") != "true" {
				t.Errorf("%s was accepted again under its idempotency key", m.to)
			}
		}
		time.Sleep(time.Hour)
		if n := len(mx.received()); n != 2 {
			t.Errorf("%d messages came within the hour, want the two that were deferred", n)
		}
		w.admin("DELETE", "/v1/suspensions?apply=true", `{"domain":"held.example"}`, 200, nil)
		time.Sleep(time.Minute)
		w.stop() // two days of an engine that has nothing to do are dear under the race detector
		time.Sleep(47 * time.Hour)
		w.start()
		time.Sleep(time.Hour)
		w.checkFormatMail(true)
		w.json("acme", apiAddr, "POST", "/v1/messages", strings.Replace(formatBody(0), "delivered@", "suppressed@", 1), "", http.StatusAccepted, nil)
		if n := len(w.events(url.Values{"type": {"message.suppressed"}})); n != 2 {
			t.Errorf("%d recipients were suppressed, want the one from before and the one from now", n)
		}
		got := map[string]string{}
		for _, m := range mx.received() {
			if err := w.verifyMail(m, true); err != nil {
				t.Errorf("%v: %v", m.to, err)
			}
			got[strings.Join(m.to, " ")] = string(m.body)
		}
		for i, m := range formatMail {
			body, came := got[m.to]
			if came != (m.after == "delivered") {
				t.Errorf("%s came: %v", m.to, came)
			}
			if came && !strings.Contains(body, "Number "+fmt.Sprint(i)) {
				t.Errorf("%s got another body", m.to)
			}
		}
		if n := strings.Count(got["large@held.example"], "Number 4"); n != 120_000 {
			t.Errorf("the large body has %d lines, want 120000", n)
		}
		w.stop()
		w.verify()
		if t.Failed() {
			t.Logf("log of the engine:\n%s", w.log)
		}
	})
}
