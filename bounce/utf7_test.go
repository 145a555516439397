package bounce

import "testing"

func TestExchangeWritesUTF7(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":                    "plain",
		"alice+AEA-example.org":    "alice@example.org",
		"+ADw-a+AEA-b.example+AD4": "<a@b.example>",
		"1 +- 1":                   "1 + 1",
		"+ZeVnLIqe-":               "日本語",
		"user+news@example.org":    "user+news@example.org",
		"+":                        "+",
		"+A":                       "+A",
	} {
		if got := toUTF8([]byte(in), "unicode-1-1-utf-7"); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
