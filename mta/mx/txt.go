package mx

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// TXT returns the text records of name, each with its strings joined; none
// when it has none. An error means that it is not known. Nothing is cached:
// callers ask seldom, and bound what they ask.
func (r *Resolver) TXT(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Total)
	defer cancel()
	name = canonical(name)
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fmt.Errorf("mx: %.300q is not a name", name)
	}
	f, err := r.records(ctx, name, dns.TypeTXT)
	if err != nil {
		return nil, fmt.Errorf("mx: %w", err)
	}
	var list []string
	for _, rr := range f.rrs {
		if t, ok := rr.(*dns.TXT); ok {
			list = append(list, strings.Join(t.Txt, ""))
		}
	}
	return list, nil
}
