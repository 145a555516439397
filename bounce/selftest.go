package bounce

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Problem is one thing wrong with a rule file that loads.
type Problem struct {
	Rule string // name of the rule
	Text string // what is wrong, a full sentence
}

func (p Problem) String() string { return p.Rule + ": " + p.Text }

// SelfTest runs the examples of every rule and looks for rules that can never
// decide. An empty result means that every rule does what its author wrote
// down, and is reached.
//
// An example is a reply as a server says it, "550 5.1.1 No such user"; codes
// may be left out. In front may stand "mx:HOST " and "STAGE: ", for rules that
// ask for them.
func (c *Classifier) SelfTest() []Problem {
	var problems []Problem
	for i := range c.rules {
		r := &c.rules[i]
		if len(r.spec.Match) == 0 {
			problems = append(problems, Problem{r.spec.Name, "It has no example in match, so nothing shows that it is reached."})
		}
		for _, example := range r.spec.Match {
			if got := c.example(example); got.Rule != r.spec.Name {
				problems = append(problems, Problem{r.spec.Name, fmt.Sprintf("Example %q was decided by rule %q.", example, got.Rule)})
			}
		}
		for _, example := range r.spec.Not {
			if got := c.example(example); got.Rule == r.spec.Name {
				problems = append(problems, Problem{r.spec.Name, fmt.Sprintf("Example %q in not was matched.", example)})
			}
		}
		problems = append(problems, c.shadowed(i)...)
	}
	return problems
}

// shadowed finds strings of rule n that always contain a string of an earlier
// rule which asks for nothing else.
func (c *Classifier) shadowed(n int) []Problem {
	var problems []Problem
	for _, s := range c.rules[n].spec.Text {
		for i := range n {
			earlier := &c.rules[i]
			if !earlier.unconditional() {
				continue
			}
			for _, t := range earlier.spec.Text {
				if strings.Contains(s, t) {
					problems = append(problems, Problem{c.rules[n].spec.Name,
						fmt.Sprintf("Text %q is never reached: rule %q takes everything with %q.", s, earlier.spec.Name, t)})
				}
			}
		}
	}
	return problems
}

func (c *Classifier) example(s string) Verdict {
	reply, host := parseExample(s)
	return c.Classify(reply, host)
}

func parseExample(s string) (*message.Reply, string) {
	host := ""
	if rest, ok := strings.CutPrefix(s, "mx:"); ok {
		host, s, _ = strings.Cut(rest, " ")
	}
	r := &message.Reply{Text: s}
	if word, rest, ok := strings.Cut(s, ": "); ok {
		if stage := message.ParseStage(word); stage != message.StageNone {
			r.Stage, r.Text = stage, rest
		}
	}
	if word, rest, _ := strings.Cut(r.Text, " "); len(word) == 3 {
		if code, err := strconv.Atoi(word); err == nil && code >= 200 && code < 600 {
			r.Code, r.Text = code, rest
		}
	}
	if e, rest, ok := message.ParseEnhanced(r.Text); ok {
		r.Enhanced, r.Text = e, rest
	}
	return r, host
}
