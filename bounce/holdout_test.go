package bounce

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// labelled is one mail with what must be read from it, in a form that lets it be
// read many times.
type labelled struct {
	want expected
	raw  []byte
}

func (l *labelled) readBy(c *Classifier, words *lexicon) bool {
	p := &parser{classifier: c, words: words, report: &Report{}}
	p.read(l.raw)
	p.run(1)
	r := p.report
	if r.Kind.String() != l.want.Kind {
		return false
	}
	for _, w := range l.want.Recipients {
		i := slices.IndexFunc(r.Recipients, func(got Recipient) bool { return strings.EqualFold(got.Address, w.Address) })
		if i < 0 {
			return false
		}
		got := r.Recipients[i]
		gone := got.Permanent && (got.Category == message.BadMailbox || got.Category == message.BadDomain)
		if w.Hard != gone && (w.Hard || got.Suppress) {
			return false
		}
	}
	return true
}

// words is all that the parser can find words in.
func (l *labelled) words(words *lexicon) string {
	p := &parser{words: words, report: &Report{}}
	p.read(l.raw)
	text := p.subject + "\n" + decodeWords(p.header.Get("From")) + "\n" + p.text
	for _, x := range p.status {
		text += x.text(maxTextPart)
	}
	return plain(text)
}

// without is m, deaf for one of its strings.
func (m *matcher) without(id uint16) *matcher {
	deaf := *m
	deaf.lists = slices.Clone(m.lists)
	for i, ids := range deaf.lists {
		if slices.Contains(ids, id) {
			deaf.lists[i] = slices.DeleteFunc(slices.Clone(ids), func(x uint16) bool { return x == id })
		}
	}
	return &deaf
}

func (c *Classifier) without(id uint16) *Classifier {
	return &Classifier{rules: c.rules, literals: c.literals, matcher: c.matcher.without(id), firstBare: c.firstBare, suffixes: c.suffixes, cache: verdictCache{limit: 4096}}
}

// TestCorpusDoesNotHangOnSingleWords takes every word away in turn and counts the
// published mails that are then misread. Such a mail is read because somebody
// wrote its words into a list, and another of its kind may not be: the count
// says how much of the score above is learned by heart.
func TestCorpusDoesNotHangOnSingleWords(t *testing.T) {
	t.Parallel()
	c := shipped(t)
	var mails []labelled
	for _, e := range readExpected(t, "testdata/corpus") {
		if fix, ok := wrongLabels[e.File]; ok {
			e.correct(fix)
		}
		raw, err := os.ReadFile(filepath.Join("testdata/corpus", e.File))
		if err != nil {
			t.Fatal(err)
		}
		mails = append(mails, labelled{e, raw})
	}
	needs := map[string][]string{} // by word: the mails that are lost without it
	lost := map[string]bool{}
	note := func(word string, m *labelled) {
		needs[word] = append(needs[word], m.want.File)
		lost[m.want.File] = true
	}
	lexicon := theLexicon()
	for i := range mails {
		m := &mails[i]
		if !m.readBy(c, lexicon) {
			continue
		}
		low := m.words(lexicon)
		seen := lexicon.find(low)
		for id, word := range lexicon.words {
			if !seen.has(uint16(id)) {
				continue
			}
			deaf := *lexicon
			deaf.matcher = lexicon.matcher.without(uint16(id))
			if !m.readBy(c, &deaf) {
				note("lexicon: "+word, m)
			}
		}
		for id, word := range c.literals.list {
			if strings.Contains(low, strings.Trim(word, " ")) && !m.readBy(c.without(uint16(id)), lexicon) {
				note("rules: "+word, m)
			}
		}
	}
	words := slices.SortedFunc(maps.Keys(needs), func(a, b string) int {
		return cmp.Or(len(needs[b])-len(needs[a]), cmp.Compare(a, b))
	})
	for _, w := range words {
		t.Logf("%-50s %d: %s", w, len(needs[w]), strings.Join(needs[w][:min(4, len(needs[w]))], " "))
	}
	if len(lost)*5 > len(mails) {
		t.Errorf("%d of %d mails hang on a single word, want a fifth at most", len(lost), len(mails))
	}
	t.Logf("%d of %d mails hang on a single word, %d words", len(lost), len(mails), len(needs))
}
