package app

import (
	"os"
	"path/filepath"
	"testing"
)

func TestKeyFileIsWholeAndForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "suppression.key")
	if err := writeDurably(path, []byte("secret\n")); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "secret\n" || st.Mode().Perm() != 0o600 {
		t.Errorf("got %q, %v, mode %o; want the secret and mode 600", text, err, st.Mode().Perm())
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("got %d files, %v; want nothing left over", len(list), err)
	}
	if err := writeDurably(filepath.Join(dir, "none", "key"), nil); err == nil {
		t.Error("got no error for a directory that is not there")
	}
}
