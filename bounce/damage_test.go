package bounce

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// damages break a mail as transport, storage, forwarding programs and people do.
// The first group moves or removes whole lines and pieces, so that no address can
// arise that was not there; the second may change any byte.
var structuralDamages = map[string]func(*rand.Rand, []byte) []byte{
	"cut anywhere":     func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(len(b)+1)] },
	"cut at the front": func(r *rand.Rand, b []byte) []byte { return b[r.IntN(len(b)):] },
	"cut out of the middle": func(r *rand.Rand, b []byte) []byte {
		lines := strings.Split(string(b), "\n")
		i := r.IntN(len(lines))
		return []byte(strings.Join(slices.Delete(lines, i, i+r.IntN(len(lines)-i)), "\n"))
	},
	"a line lost": func(r *rand.Rand, b []byte) []byte { return editLine(r, b, func(string) []string { return nil }) },
	"a line twice": func(r *rand.Rand, b []byte) []byte {
		return editLine(r, b, func(s string) []string { return []string{s, s} })
	},
	"a blank line more": func(r *rand.Rand, b []byte) []byte {
		return editLine(r, b, func(s string) []string { return []string{s, ""} })
	},
	"a line indented": func(r *rand.Rand, b []byte) []byte {
		return editLine(r, b, func(s string) []string { return []string{" " + s} })
	},
	"a line broken": func(r *rand.Rand, b []byte) []byte {
		return editLine(r, b, func(s string) []string { return []string{s[:len(s)/2], s[len(s)/2:]} })
	},
	"all blank lines lost": func(_ *rand.Rand, b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n\n"), []byte("\n")) },
	"quoted as an answer":  func(_ *rand.Rand, b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\n> ")) },
	"boundaries lost": func(r *rand.Rand, b []byte) []byte {
		return dropLines(b, func(s string) bool { return strings.HasPrefix(s, "--") && r.IntN(2) == 0 })
	},
	"types lost": func(r *rand.Rand, b []byte) []byte {
		return dropLines(b, func(s string) bool { return strings.HasPrefix(strings.ToLower(s), "content-") && r.IntN(2) == 0 })
	},
	"header lost": func(_ *rand.Rand, b []byte) []byte { _, body, _ := bytes.Cut(b, []byte("\n\n")); return body },
	"body first": func(_ *rand.Rand, b []byte) []byte {
		head, body, _ := bytes.Cut(b, []byte("\n\n"))
		return slices.Concat(body, []byte("\n\n"), head)
	},
	"twice over": func(_ *rand.Rand, b []byte) []byte { return slices.Concat(b, b) },
	"wrong encoding": func(r *rand.Rand, b []byte) []byte {
		return encodingNamed(b, [...]string{"base64", "quoted-printable", "x-uuencode", "gzip64", "8 bit"}[r.IntN(5)])
	},
	"carriage returns":   func(_ *rand.Rand, b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\r\n")) },
	"white space at end": func(_ *rand.Rand, b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte(" \t\n")) },
}

var otherDamages = map[string]func(*rand.Rand, []byte) []byte{
	"bits flipped": func(r *rand.Rand, b []byte) []byte {
		b = bytes.Clone(b)
		for range 1 + r.IntN(60) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		return b
	},
	"NULs": func(r *rand.Rand, b []byte) []byte {
		b = bytes.Clone(b)
		for range 1 + r.IntN(60) {
			b[r.IntN(len(b))] = 0
		}
		return b
	},
	"eighth bit set": func(r *rand.Rand, b []byte) []byte {
		return mapBytes(b, func(c byte) byte {
			if r.IntN(20) == 0 {
				c |= 0x80
			}
			return c
		})
	},
	"eighth bit lost": func(_ *rand.Rand, b []byte) []byte { return mapBytes(b, func(c byte) byte { return c & 0x7F }) },
	"UTF-16":          func(_ *rand.Rand, b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\n\x00")) },
	"encoded whole": func(_ *rand.Rand, b []byte) []byte {
		return []byte("Content-Transfer-Encoding: base64\n\n" + base64.StdEncoding.EncodeToString(b))
	},
	"hostile charset": func(r *rand.Rand, b []byte) []byte {
		name := [...]string{"utf-7", "utf-16le", "iso-2022-cn", "hz-gb-2312", "gb18030", "cp437", "x-unknown", "\xff\xfe", strings.Repeat("x", 5000)}[r.IntN(9)]
		return slices.Concat([]byte("Content-Type: text/plain; charset="+name+"\n"), b)
	},
}

func mapBytes(b []byte, f func(byte) byte) []byte {
	b = bytes.Clone(b)
	for i := range b {
		b[i] = f(b[i])
	}
	return b
}

func editLine(r *rand.Rand, b []byte, f func(string) []string) []byte {
	lines := strings.Split(string(b), "\n")
	i := r.IntN(len(lines))
	return []byte(strings.Join(slices.Replace(lines, i, i+1, f(lines[i])...), "\n"))
}

func dropLines(b []byte, drop func(string) bool) []byte {
	return []byte(strings.Join(slices.DeleteFunc(strings.Split(string(b), "\n"), drop), "\n"))
}

func encodingNamed(b []byte, name string) []byte {
	return slices.Concat([]byte("Content-Transfer-Encoding: "+name+"\n"), bytes.ReplaceAll(b, []byte("7bit"), []byte(name)))
}

// allFixtures is every mail under testdata, in whatever form it is kept.
func allFixtures(t testing.TB) map[string][]byte {
	t.Helper()
	mails := allMail(t)
	for _, pattern := range []string{"systems/*.txtar", "fresh/*.txtar"} {
		for _, x := range readFixtures(t, pattern) {
			mails[x.name] = x.raw
		}
	}
	return mails
}

// TestDamagedMailAccusesNobody breaks every mail in a third of all ways. No crash, a report
// within its bounds; and where whole pieces were moved or lost, nobody is
// suppressed whom the mail did not name as failed, because the address that stays
// when others are lost is that of the sender or of a bystander.
func TestDamagedMailAccusesNobody(t *testing.T) {
	t.Parallel()
	o := Options{Classifier: shipped(t)}
	random := rand.New(rand.NewPCG(20, 26))
	mails := allFixtures(t)
	tried, accused := 0, 0
	for i, name := range slices.Sorted(maps.Keys(mails)) {
		raw := mails[name]
		if len(raw) > 12000 {
			raw = raw[:12000]
		}
		whole := Parse(raw, o)
		failed := map[string]bool{}
		for _, x := range whole.Recipients {
			failed[strings.ToLower(x.Address)] = true
			failed[strings.ToLower(x.Original)] = true
		}
		for k, damage := range slices.Sorted(maps.Keys(structuralDamages)) {
			if (i+k)%3 != 0 {
				continue // a third of the pairs, so that each mail and each damage comes often
			}
			r := Parse(structuralDamages[damage](random, raw), o)
			checkReport(t, r)
			tried++
			for _, x := range r.Recipients {
				if x.Suppress && !failed[strings.ToLower(x.Address)] && !isPiece(x.Address, failed) {
					accused++
					t.Logf("%s, %s: suppresses %s for %q", name, damage, x.Address, x.Diagnostic)
				}
			}
		}
		for k, damage := range slices.Sorted(maps.Keys(otherDamages)) {
			if (i+k)%3 != 0 {
				continue
			}
			checkReport(t, Parse(otherDamages[damage](random, raw), o))
		}
	}
	t.Logf("%d damaged mails, %d of them accuse somebody else", tried, accused)
	// A cut can leave a whole report out of a mail that quoted it, and a lost
	// fold give one recipient the words about another: one in 2,000 is allowed.
	if accused > tried/2000 {
		t.Errorf("%d of %d damaged mails suppress an address that had not failed", accused, tried)
	}
}

// isPiece reports an address that a cut or a break made out of one that failed.
func isPiece(a string, failed map[string]bool) bool {
	for f := range failed {
		if f != "" && strings.Contains(f, strings.ToLower(a)) {
			return true
		}
	}
	return false
}

// TestNoMailCostsMoreThanItsBound holds Parse to what DESIGN and the documentation
// of the package promise of the worst mail: 10 MB looked at, and memory and time
// of that order. The time is a ceiling against quadratic behaviour, generous
// because the machine is shared; BenchmarkHostile has the figures.
func TestNoMailCostsMoreThanItsBound(t *testing.T) {
	// Not parallel: it reads counters of the whole process.
	o := Options{Classifier: shipped(t)}
	Parse([]byte("Subject: x\n\n"), o)
	for name, raw := range hostile() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		checkReport(t, Parse(raw, o))
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if took > 5*time.Second {
			t.Errorf("%s: %v", name, took)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
			t.Errorf("%s: %d MB allocated", name, used>>20)
		}
	}
}

// crowded names a thousand recipients over and over, fifty to a line.
func crowded() []byte {
	var text, status strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&status, "\nFinal-Recipient: rfc822; u%d@b.example\nAction: failed\n", i)
		for k := range 40 {
			fmt.Fprintf(&text, "u%d@b.example ", (i+k*25)%1000)
		}
		text.WriteString("\n")
	}
	return []byte("From: MAILER-DAEMON@x\nContent-Type: multipart/report; boundary=b\n\n--b\n\n" + text.String() +
		"\n--b\nContent-Type: message/delivery-status\n\n" + status.String() + "\n--b--\n")
}

// nestedBoundaries opens multiparts whose boundaries begin with one another.
func nestedBoundaries() []byte {
	var b strings.Builder
	b.WriteString("From: MAILER-DAEMON@x\nContent-Type: multipart/mixed; boundary=b\n\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "--%s\nContent-Type: multipart/mixed; boundary=%s\n\n", strings.Repeat("b", 1+i%60), strings.Repeat("b", 2+i%60))
	}
	return []byte(b.String())
}

// TestPlainLettersStayAsTheyAre tries every character there is.
func TestPlainLettersStayAsTheyAre(t *testing.T) {
	t.Parallel()
	for r := rune(1); r <= unicode.MaxRune; r++ {
		if once := plain(string(r)); plain(once) != once {
			t.Errorf("%U is %q, and then %q", r, once, plain(once))
		}
	}
}

// FuzzWords reads any text as a server's answer and as words to compare.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"550 5.1.1 <a@example.org>... User unknown", "554 <a@b>... 550 Host unknown", "原因：550 用户不存在", "N’A PAS PU ÊTRE", "＜５５０＞", "5.1.", "550-", "\xff\xfe550 5.2.2", "... ", "(#5.1.1)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w := readWords(s)
		if w.code != 0 && (w.code < 200 || w.code > 599) || w.enhanced[0] > 5 || len(w.full) > 2100 {
			t.Fatalf("%q: %+v", s, w)
		}
		shipped(t).Classify(w.reply(), "")
		once := plain(s)
		if again := plain(once); again != once {
			t.Fatalf("%q is plain, and then %q", once, again)
		}
		for _, a := range findAddresses(s) {
			if a.start < 0 || a.end > len(s) || a.start >= a.end {
				t.Fatalf("%q: %+v", s, a)
			}
		}
	})
}
