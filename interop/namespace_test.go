//go:build interop && linux

package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// alone runs the calling test again in user, network and mount namespaces of
// its own, where every port is free, no question leaves the machine, and mounts
// are ours. It returns true there; outside it returns false once that run has
// ended well. No privilege is needed.
func alone(t *testing.T) bool {
	t.Helper()
	const inside = "TRADEWIND_INTEROP_INSIDE"
	if os.Getenv(inside) == t.Name() {
		raiseLoopback(t)
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name(), binaryEnv+"="+binary, "RES_OPTIONS=timeout:2 attempts:1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Fatalf("in namespaces: %v", err)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatal("the test did not run in the namespaces")
	}
	return false
}

func raiseLoopback(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("bring lo up: %v", err)
	}
}

// cover mounts src over dst until the namespace ends.
func cover(t *testing.T, src, dst string) {
	t.Helper()
	if err := unix.Mount(src, dst, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount over %s: %v", dst, err)
	}
}

// resolveAt makes the system's resolver ask address, port 53.
func resolveAt(t *testing.T, address string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+address+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cover(t, file, "/etc/resolv.conf")
}

// txtOf is the text of the TXT record among the lines of a zone file.
func txtOf(t *testing.T, zone string) string {
	t.Helper()
	var b strings.Builder
	for i, part := range strings.Split(zone, `"`) {
		if i%2 == 1 {
			b.WriteString(part)
		}
	}
	if !strings.HasPrefix(b.String(), "v=DKIM1;") {
		t.Fatalf("no record in %q", zone)
	}
	return b.String()
}
