package message

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"time"
)

func TestIDsIncreaseWhileTheClockStandsStillOrStepsBack(t *testing.T) {
	t.Parallel()
	var s IDSource
	now := time.UnixMilli(1_800_000_000_000)
	last := ID{}
	for i := range 100_000 {
		switch {
		case i%1000 == 999:
			now = now.Add(-time.Second)
		case i%100 == 99:
			now = now.Add(time.Millisecond)
		}
		id := s.New(now)
		if bytes.Compare(id[:], last[:]) <= 0 || id.String() <= last.String() {
			t.Fatalf("id %d: %s after %s", i, id, last)
		}
		last = id
	}
}

func TestIDsOfConcurrentCallersDiffer(t *testing.T) {
	t.Parallel()
	var s IDSource
	now := time.UnixMilli(1_800_000_000_000)
	const callers, each = 8, 5000
	got := make([][]ID, callers)
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for range each {
				got[c] = append(got[c], s.New(now))
			}
		})
	}
	all.Wait()
	seen := make(map[ID]bool, callers*each)
	for _, ids := range got {
		for i, id := range ids {
			if seen[id] {
				t.Fatalf("%s twice", id)
			}
			seen[id] = true
			if i > 0 && bytes.Compare(ids[i-1][:], id[:]) >= 0 {
				t.Fatalf("%s after %s", id, ids[i-1])
			}
		}
	}
}

func TestIDsOfTwoSourcesDiffer(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	seen := map[ID]bool{}
	for range 1000 {
		id := new(IDSource).New(now)
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
}

func TestIDTellsItsTime(t *testing.T) {
	t.Parallel()
	for _, now := range []time.Time{time.UnixMilli(0), time.UnixMilli(1_800_000_000_123), time.UnixMilli(1<<48 - 1)} {
		var s IDSource
		if got := s.New(now).Time(); !got.Equal(now) {
			t.Errorf("made at %v, says %v", now, got)
		}
	}
}

func TestIDComesBackFromItsText(t *testing.T) {
	t.Parallel()
	roundTrip := func(id ID) bool {
		s := id.String()
		a, err := ParseID(s)
		b, lowerErr := ParseID(strings.ToLower(s))
		raw, jsonErr := json.Marshal(id)
		var c ID
		return len(s) == 26 && err == nil && a == id && lowerErr == nil && b == id && jsonErr == nil && json.Unmarshal(raw, &c) == nil && c == id
	}
	if err := quick.Check(roundTrip, nil); err != nil {
		t.Error(err)
	}
	full := ID(bytes.Repeat([]byte{0xFF}, 16))
	if !roundTrip(ID{}) || !roundTrip(full) || full.String() != "7ZZZZZZZZZZZZZZZZZZZZZZZZZ" {
		t.Errorf("edges: %s, %s", ID{}, full)
	}
}

func TestBadIDsAreRefused(t *testing.T) {
	t.Parallel()
	good := "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	if _, err := ParseID(good); err != nil {
		t.Fatalf("%s: %v", good, err)
	}
	for _, s := range []string{"", good[1:], good + "0", "8" + good[1:], "U" + good[1:], good[:25] + "U", good[:25] + "-", good[:25] + " ", good[:24] + "é", good[:25] + "\x00"} {
		if id, err := ParseID(s); err != ErrBadID || !id.IsZero() {
			t.Errorf("%q: %s, %v", s, id, err)
		}
	}
	if id, err := ParseID("01arz3ndektsv4rrffq69g5fav"); err != nil || id.String() != good {
		t.Errorf("lower case: %s, %v", id, err)
	}
	a, _ := ParseID("0iARZ3NDEKTSV4RRFFQ69G5FoV")
	b, _ := ParseID("01ARZ3NDEKTSV4RRFFQ69G5F0V")
	if a != b || a.IsZero() {
		t.Errorf("look-alikes: %s and %s", a, b)
	}
}

func TestRecipientIDsNameMessageAndNumber(t *testing.T) {
	t.Parallel()
	var s IDSource
	id := s.New(time.UnixMilli(1_800_000_000_000))
	for _, n := range []uint32{0, 1, 9999, 1<<32 - 1} {
		got, m, all, err := ParseRecipientID(RecipientID(id, n))
		if err != nil || got != id || m != n || all {
			t.Errorf("%d: %s, %d, %v, %v", n, got, m, all, err)
		}
	}
	if got, _, all, err := ParseRecipientID(id.String()); err != nil || got != id || !all {
		t.Errorf("whole message: %s, %v, %v", got, all, err)
	}
	for _, bad := range []string{"", ".", id.String() + ".", id.String() + ".x", id.String() + ".-1", id.String() + ".4294967296", id.String() + ".1.2", "x.1", "." + id.String()} {
		if got, _, _, err := ParseRecipientID(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	f.Add("8ZZZZZZZZZZZZZZZZZZZZZZZZZ")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Fatalf("%q is %s, and that %s, %v", s, id, again, err)
		}
	})
}

func BenchmarkNewID(b *testing.B) {
	var s IDSource
	now := time.UnixMilli(1_800_000_000_000)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		s.New(now)
	}
}
