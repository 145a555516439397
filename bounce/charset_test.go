package bounce

import "testing"

func TestShiftedCharsetsAreRead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, charset, want string }{
		{"\x1b$)C<a@b.example> \x0e;g?k@Z\x0f", "iso-2022-kr", "<a@b.example> 사용자"},
		{"\x1b$)C\x0e;g?k@Z\n550 5.1.1", "", "사용자\n550 5.1.1"},
		{"\x1b$)A\x0eSC;'\x0f a", "iso-2022-cn", "用户 a"},
		{"~{SC;'~} a@b", "hz-gb-2312", "用户 a@b"},
		{"550 no such user \x1b", "iso-2022-kr", "550 no such user \x1b"},
	} {
		if got := toUTF8([]byte(test.in), test.charset); got != test.want {
			t.Errorf("%q as %s: got %q, want %q", test.in, test.charset, got, test.want)
		}
	}
}
