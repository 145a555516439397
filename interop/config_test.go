//go:build interop && linux

package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckNamesEveryMistake(t *testing.T) {
	t.Parallel()
	const door = "[[smtp]]\nlisten = \"127.0.0.1:0\"\nrelay_from = [\"127.0.0.0/8\"]\n"
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "[queue]\nretri = [\"1s\"]\n", "tradewind.toml: queue.retri: unknown key; did you mean queue.retry?"},
		{"unknown table", "[qeue]\nmax_age = \"1h\"\n", "did you mean queue"},
		{"unknown key of a listener", door + "max_message = \"1MB\"\n", "did you mean smtp.max_message_size?"},
		{"no TOML", "[queue\n", "tradewind.toml:4: "},
		{"wrong type", "[queue]\nwindow = \"many\"\n", "queue.window"},
		{"no duration", "[queue]\nmax_age = \"3 days\"\n", "max_age"},
		{"no size", "[store]\ncache = \"64 elephants\"\n", "is not a size such as 64MiB"},
		{"no address", "[[smtp]]\nlisten = \"2525\"\nrelay_from = [\"127.0.0.0/8\"]\n", "smtp[0].listen: \"2525\" is not address:port"},
		{"no network", "[[smtp]]\nlisten = \"127.0.0.1:0\"\nrelay_from = [\"everybody\"]\n", "relay_from"},
		{"open relay", "[[smtp]]\nlisten = \"127.0.0.1:0\"\nrelay_from = [\"0.0.0.0/0\"]\n", "smtp[0].relay_from[0]: 0.0.0.0/0 would make an open relay"},
		{"AUTH without TLS", "[[smtp]]\nlisten = \"127.0.0.1:0\"\n", "smtp[0].relay_from: nobody could submit here: AUTH needs tls_cert and tls_key"},
		{"certificate without key", door + "tls_cert = \"{dir}/cert.pem\"\n", "tls_cert and tls_key go together"},
		{"missing certificate", door + "tls_cert = \"{dir}/none.pem\"\ntls_key = \"{dir}/none.pem\"\n", "none.pem: no such file or directory"},
		{"certificate that is none", door + "tls_cert = \"{dir}/junk.pem\"\ntls_key = \"{dir}/junk.pem\"\n", "smtp[0].tls_cert"},
		{"implicit TLS without certificate", door + "implicit_tls = true\n", "smtp[0].implicit_tls: needs tls_cert and tls_key"},
		{"trust off loopback", "[http]\napi = \"0.0.0.0:8025\"\ntrust_loopback = true\n", "http.trust_loopback: http.api listens on 0.0.0.0:8025, which is not loopback"},
		{"missing DKIM key", "[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\nkey_file = \"{dir}/none.pem\"\n", "dkim[0].key_file"},
		{"DKIM key that is none", "[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\nkey_file = \"{dir}/junk.pem\"\n", "junk.pem"},
		{"DKIM key for all to read", "[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\nkey_file = \"{dir}/open.pem\"\n", "open.pem"},
		{"DKIM key without selector", "[[dkim]]\ndomain = \"example.com\"\nkey_file = \"{dir}/open.pem\"\n", "dkim[0].selector: required"},
		{"pool of an unknown source", "[[pool]]\nname = \"bulk\"\nsources = [{ source = \"ip9\" }]\n", "pool[0].sources[0].source: no [[source]] is named \"ip9\""},
		{"source twice", "[[source]]\nname = \"a\"\n[[source]]\nname = \"a\"\n", "source[1].name: \"a\" is there twice"},
		{"tenant with a space", "[[tenant]]\nname = \"a b\"\n", "tenant[0].name"},
		{"tenant of an unknown pool", "[[tenant]]\nname = \"a\"\npool = \"p\"\n", "tenant[0].pool: no [[pool]] or [[source]] is named \"p\""},
		{"route without next hop", "[[route]]\ndomains = [\"*\"]\n", "route[0]."},
		{"TLS policy", "[delivery]\ntls = \"maybe\"\n", "delivery.tls"},
		{"DNS family", "[dns]\nfamily = \"both\"\n", "dns.family"},
		{"log level", "[log]\nlevel = \"loud\"\n", "log.level"},
		{"missing shaping file", "[shaping]\nfiles = [\"{dir}/none.toml\"]\n", "none.toml"},
		{"bad shaping file", "[shaping]\nfiles = [\"{dir}/shaping.toml\"]\n", "shaping.toml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, file := configure(t, c.text)
			key := mustRun(t, "openssl", "genrsa", "2048")
			for name, text := range map[string]string{
				"cert.pem": "", "junk.pem": "junk\n", "open.pem": key[strings.Index(key, "-----"):],
				"shaping.toml": "[provider.x]\nmx_sufix = [\".x.example\"]\n",
			} {
				mode := os.FileMode(0o600)
				if name == "open.pem" {
					mode = 0o644
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			out, status := tool(t, binary, "check", "-c", file)
			if status != 1 || !strings.Contains(out, c.want) {
				t.Errorf("check: exit status %d, want 1 and %q\n%s", status, c.want, out)
			}
			if !strings.Contains(out, file) {
				t.Errorf("the file is not named:\n%s", out)
			}
			// What check refuses does not run either.
			out, status = tool(t, binary, "serve", "-c", file)
			if status != 1 {
				t.Errorf("serve: exit status %d, want 1\n%s", status, out)
			}
		})
	}

	t.Run("all at once", func(t *testing.T) {
		_, file := configure(t, "[log]\nlevel = \"loud\"\nfromat = \"json\"\n[[smtp]]\nlisten = \"x\"\n[dns]\nfamily = \"both\"\n")
		out, status := tool(t, binary, "check", "-c", file)
		if status != 1 {
			t.Errorf("exit status %d", status)
		}
		for _, want := range []string{"log.level", "log.fromat: unknown key; did you mean log.format?", "smtp[0].listen", "smtp[0].relay_from", "dns.family", "5 problems"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	})
	t.Run("the shipped files are right", func(t *testing.T) {
		out := mustRun(t, binary, "check", "-c", "../configs/quickstart.toml")
		if !strings.Contains(out, ": ok") {
			t.Error(out)
		}
	})
	t.Run("no such file", func(t *testing.T) {
		out, status := tool(t, binary, "check", "-c", "none.toml")
		if status != 1 || !strings.Contains(out, "none.toml: no such file or directory") {
			t.Errorf("exit status %d\n%s", status, out)
		}
	})
	t.Run("no file named", func(t *testing.T) {
		out, status := tool(t, binary, "check")
		if status != 2 || !strings.Contains(out, "-c FILE is missing") {
			t.Errorf("exit status %d\n%s", status, out)
		}
	})
}
