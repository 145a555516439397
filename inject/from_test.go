package inject

import (
	"net/mail"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// FuzzFrom compares our reading of From with net/mail's. Where both find one
// mailbox it must be the same: whoever aligns a signature with the wrong
// domain signs for somebody else.
func FuzzFrom(f *testing.F) {
	for _, s := range []string{
		`a@b.example`, `"x <c@d.example>" <a@b.example>`, `x (<c@d.example>) <a@b.example>`, `a@b.example (c@d.example)`, `<a@b.example>`,
		`"a b"@c.example`, `J <"a>b"@c.example>`, `"\" <c@d.example>" <a@b.example>`, `(a (b) \) c) <a@b.example>`, `=?utf-8?q?x_=3Cc=40d=3E?= <a@b.example>`,
		`a@b.example, c@d.example`, `g: a@b.example;`, `<@x.example:a@b.example>`, `"a" (c) "b" <a@b.example>`, `a(c)@b.example`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, "\r\n\x00") {
			return // the scan of the header has unfolded or refused these
		}
		ours, bad := mailbox(s)
		if bad != nil {
			return
		}
		if again, err := message.ParseAddress(ours.String()); err != nil || again != ours {
			t.Fatalf("%q is %q, which is no address", s, ours)
		}
		list, err := mail.ParseAddressList(s)
		if err != nil {
			return // net/mail knows less of the grammar than we do
		}
		if len(list) != 1 {
			t.Fatalf("%q is one mailbox to us and %d to net/mail: %v", s, len(list), list)
		}
		at := strings.LastIndexByte(list[0].Address, '@')
		domain, err := message.ParseDomain(list[0].Address[at+1:])
		if err == nil && domain != ours.Domain() {
			t.Fatalf("%q is at %s to us and at %s to net/mail", s, ours.Domain(), domain)
		}
	})
}
