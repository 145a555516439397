package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestEverySignatureOfTheCorpusVerifies(t *testing.T) {
	t.Parallel()
	r := mustNew(t, dualConfig())
	for name, msg := range corpus() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signed := join(mustSign(t, r, msg), msg)
			errs := verify(t, r, signed)
			if len(errs) != 2 || errs[0] != nil || errs[1] != nil {
				t.Errorf("got %v, want two good signatures\n%.2000s", errs, signed)
			}
		})
	}
}

func TestAnyByteChangedBreaksBothSignatures(t *testing.T) {
	t.Parallel()
	r := mustNew(t, dualConfig())
	// Every field is signed, and there is no white space that relaxed form
	// forgives: each byte matters.
	msg := []byte("From:a@example.com\r\nSubject:hello\r\nTo:b@example.net\r\n\r\nHi.\r\nBye.\r\n")
	fields := mustSign(t, r, msg)
	for i := range msg {
		if msg[i] == '\r' || msg[i] == '\n' {
			continue // not a signed byte but framing
		}
		changed := bytes.Clone(msg)
		changed[i] ^= 0x01
		for n, err := range verify(t, r, join(fields, changed)) {
			if err == nil {
				t.Errorf("signature %d still verifies with byte %d (%q) changed to %q", n, i, msg[i], changed[i])
			}
		}
	}
}

func TestAddedHeaderBreaksTheSignature(t *testing.T) {
	t.Parallel()
	r := mustNew(t, edConfig())
	messages := corpus()
	for _, base := range []string{"bulk mail", "From only"} {
		fields := mustSign(t, r, messages[base])
		for _, name := range DefaultOversign() {
			added := []byte(name + ": x@example.org\r\n")
			header, body, _ := bytes.Cut(messages[base], []byte("\r\n\r\n"))
			body = join([]byte("\r\n"), body)
			header = join(header, []byte("\r\n"))
			for where, signed := range map[string][]byte{
				"on top":      join(added, fields, header, body),
				"in between":  join(fields, added, header, body),
				"at the foot": join(fields, header, added, body),
			} {
				if errs := verify(t, r, signed); len(errs) != 1 || errs[0] == nil {
					t.Errorf("%s: with a %s added %s the signature verdict is %v, want a failure", base, name, where, errs)
				}
			}
		}
	}
}

var tagPattern = regexp.MustCompile(`(?s)^DKIM-Signature: v=1; a=(\S+); c=relaxed/relaxed;\s+d=(\S+);\s+s=(\S+);`)

func TestFieldIsFoldedWithin78Octets(t *testing.T) {
	t.Parallel()
	c := dualConfig()
	c.Keys[0].Identity = "news@lists.example.com"
	r := mustNew(t, c)
	many := crlfs(plainHeader + strings.Repeat("To: someone@example.net\nReferences: <a@b>\n", 200) + "\nHi.\n")
	for name, msg := range map[string][]byte{"plain": corpus()["plain"], "400 more fields": many} {
		fields := mustSign(t, r, msg)
		if !bytes.HasSuffix(fields, crlf) {
			t.Errorf("%s: no CRLF at the end", name)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(string(fields), "\r\n"), "\r\n") {
			if len(line) > maxLine || strings.ContainsAny(line, "\r\n") || strings.TrimSpace(line) == "" {
				t.Errorf("%s: line of %d octets %q", name, len(line), line)
			}
		}
		if errs := verify(t, r, join(fields, msg)); len(errs) != 2 || errs[0] != nil || errs[1] != nil {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

func TestFieldHoldsTheTagsAndNeverABodyLength(t *testing.T) {
	t.Parallel()
	c := dualConfig()
	c.Keys[1].Identity = "@example.com"
	c.Headers, c.Oversign = []string{"From", "Subject", "To"}, []string{"From", "Cc"}
	fields := string(mustSign(t, mustNew(t, c), corpus()["plain"]))
	unfolded := strings.ReplaceAll(fields, "\r\n ", " ")
	lines := strings.Split(strings.TrimSuffix(unfolded, "\r\n"), "\r\n")
	if len(lines) != 2 {
		t.Fatalf("got %d fields, want 2:\n%s", len(lines), fields)
	}
	bh := "UrA8rmgY3eNBotmDWtzAmHyn5RyZv8Gea45sNGsP0zw="
	for i, want := range []string{
		"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=rsa; t=4076049600; x=4076654400; h=From:From:Subject:To:Cc; bh=" + bh + "; b=",
		"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed; d=example.com; s=ed; i=@example.com; t=4076049600; x=4076654400; h=From:From:Subject:To:Cc; bh=" + bh + "; b=",
	} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("got  %s\nwant %s", lines[i], want)
		}
	}
	if !tagPattern.MatchString(fields) || strings.Contains(fields, "l=") {
		t.Errorf("unexpected form:\n%s", fields)
	}
}

func TestNoExpiryMeansNoTag(t *testing.T) {
	t.Parallel()
	c := edConfig()
	c.Expiry = 0
	if fields := mustSign(t, mustNew(t, c), corpus()["plain"]); bytes.Contains(fields, []byte("x=")) {
		t.Errorf("got an x= in\n%s", fields)
	}
}

func TestLongNamesAreNotBroken(t *testing.T) {
	t.Parallel()
	c := edConfig()
	long := strings.Repeat("long-label-of-sixty-letters-", 2) + "abc"
	domain := long + "." + long + "." + long + ".example.com"
	c.Keys[0].Domain, c.Keys[0].Selector = domain, long
	c.Headers = append(DefaultHeaders(), "X-"+strings.Repeat("Name", 31))
	r := mustNew(t, c)
	msg := crlfs("From: a@" + domain + "\nX-" + strings.Repeat("Name", 31) + ": v\n\nHi.\n")
	fields, err := r.Sign(t.Context(), Request{Message: msg, From: domain, Now: signedAt})
	if err != nil {
		t.Fatal(err)
	}
	if errs := verify(t, r, join(fields, msg)); len(errs) != 1 || errs[0] != nil {
		t.Errorf("%v\n%s", errs, fields)
	}
}

func TestBodyHashIsSharedAcrossMessages(t *testing.T) {
	t.Parallel()
	r := mustNew(t, dualConfig())
	body := []byte("Shared  body \r\n\r\n")
	hash, err := HashBody(body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		header := crlfs(fmt.Sprintf("From: a@example.com\nTo: %d@example.net\n\n", i))
		fields, err := r.Sign(t.Context(), Request{Message: header, BodyHash: hash, From: "example.com", Now: signedAt})
		if err != nil {
			t.Fatal(err)
		}
		if want := mustSign(t, r, join(header, body)); !bytes.Equal(fields, want) {
			t.Errorf("got\n%swant\n%s", fields, want)
		}
		if errs := verify(t, r, join(fields, header, body)); errs[0] != nil || errs[1] != nil {
			t.Error(errs)
		}
	}
}

func TestHeaderAloneSignsLikeAnEmptyBody(t *testing.T) {
	t.Parallel()
	r := mustNew(t, edConfig())
	got, want := mustSign(t, r, crlfs(plainHeader)), mustSign(t, r, corpus()["empty body"])
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestMessagesThatCannotBeSignedAreRefused(t *testing.T) {
	t.Parallel()
	r := mustNew(t, edConfig())
	from := "From: a@example.com\r\n"
	for name, c := range map[string]struct {
		msg  string
		want error
	}{
		"nothing":                 {"", ErrHeader},
		"no From":                 {"To: a@example.com\r\n\r\nHi.\r\n", ErrHeader},
		"no header":               {"\r\nFrom: a@example.com\r\n", ErrHeader},
		"header not ended":        {"From: a@example.com", ErrHeader},
		"a line without colon":    {from + "nonsense\r\n\r\nHi.\r\n", ErrHeader},
		"a colon first":           {from + ": x\r\n\r\nHi.\r\n", ErrHeader},
		"space before a colon":    {from + " : x\r\n\r\nHi.\r\n", nil}, // a fold of From
		"space in a name":         {from + "To me: x\r\n\r\nHi.\r\n", ErrHeader},
		"fold first":              {" " + from + "\r\nHi.\r\n", ErrHeader},
		"eight bit name":          {from + "Tö: x\r\n\r\nHi.\r\n", ErrHeader},
		"bare LF in header":       {from + "To: x\nCc: y\r\n\r\nHi.\r\n", ErrLineEnd},
		"bare CR in header":       {from + "To: x\rCc: y\r\n\r\nHi.\r\n", ErrLineEnd},
		"CR CR LF in header":      {from + "To: x\r\r\n\r\nHi.\r\n", ErrLineEnd},
		"header ended by LF LF":   {from + "\n\nHi.\r\n", ErrLineEnd},
		"bare LF in body":         {from + "\r\nHi.\nBye.\r\n", ErrLineEnd},
		"bare CR in body":         {from + "\r\nHi.\rBye.\r\n", ErrLineEnd},
		"bare CR at the end":      {from + "\r\nHi.\r", ErrLineEnd},
		"LF at the start of body": {from + "\r\n\nHi.\r\n", ErrLineEnd},
		"the most fields":         {from + strings.Repeat("To: x\r\n", maxFields-1) + "\r\nHi.\r\n", nil},
		"a field too many":        {from + strings.Repeat("X: x\r\n", maxFields) + "\r\nHi.\r\n", ErrHeader},
		"a longest field":         {from + "X: " + strings.Repeat("x", maxFieldBytes-5) + "\r\n\r\nHi.\r\n", nil},
		"a field too long":        {from + "X: " + strings.Repeat("x", maxFieldBytes-4) + "\r\n\r\nHi.\r\n", ErrHeader},
		"a fold too many":         {from + "X: x" + strings.Repeat("\r\n x", maxFieldBytes/4) + "\r\n\r\nHi.\r\n", ErrHeader},
		"a header too long":       {from + strings.Repeat("X: "+strings.Repeat("x", 60<<10)+"\r\n", 5) + "\r\nHi.\r\n", ErrHeader},
	} {
		fields, err := r.Sign(t.Context(), Request{Message: []byte(c.msg), From: "example.com", Now: signedAt})
		if !errors.Is(err, c.want) || (err == nil) != (len(fields) > 0) {
			t.Errorf("%s: got %q, %v; want error %v", name, fields, err, c.want)
		}
	}
}

func TestSigningSlotsAreBoundedAndGoInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := edConfig()
		c.Concurrency = 2
		r := mustNew(t, c)
		msg := corpus()["plain"]
		started := make(chan int, 10)
		proceed := make(chan struct{})
		for _, k := range r.keys {
			inner := k.sign
			k.sign = func(digest []byte) ([]byte, error) {
				started <- 0
				<-proceed
				return inner(digest)
			}
		}
		done := make(chan int, 10)
		for i := range 5 {
			go func() {
				if _, err := r.Sign(t.Context(), Request{Message: msg, From: "example.com", Now: signedAt}); err != nil {
					t.Error(err)
				}
				done <- i
			}()
			synctest.Wait()
		}
		if n := len(started); n != 2 {
			t.Fatalf("%d messages are being signed, want 2", n)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := r.Sign(ctx, Request{Message: msg, From: "example.com", Now: signedAt})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting in vain gave %v, want a deadline error", err)
		}

		var order []int
		for range 5 {
			proceed <- struct{}{}
			synctest.Wait()
			order = append(order, <-done)
			if n := len(started) - len(order); n > 2 {
				t.Errorf("%d messages are being signed, want at most 2", n)
			}
		}
		// The first two began together; those who waited follow as they came.
		if order[2] != 2 || order[3] != 3 || order[4] != 4 {
			t.Errorf("finished in the order %v, want 2, 3, 4 last", order)
		}
	})
}

func TestSignerFailureIsReportedNotSkipped(t *testing.T) {
	t.Parallel()
	r := mustNew(t, edConfig())
	broken := errors.New("the token was pulled out")
	r.keys[0].sign = func([]byte) ([]byte, error) { return nil, broken }
	fields, err := r.Sign(t.Context(), Request{Message: corpus()["plain"], From: "example.com", Now: signedAt})
	if !errors.Is(err, broken) || fields != nil {
		t.Errorf("got %q, %v", fields, err)
	}
}
