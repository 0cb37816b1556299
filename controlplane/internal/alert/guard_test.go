package alert_test

import (
	"net/netip"
	"testing"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/shared/fault"
)

func TestGuard_RefusesEveryAddressThatIsNotPublic(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.170.2",
		"100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16", "198.18.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "0.1.2.3",
		"fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "100::1", "2001::1", "3fff::1", "5f00::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
	} {
		if err := alert.CheckAddress(nil, a, false); fault.ReasonOf(err) != alert.ReasonAddress {
			t.Errorf("%s: got %v, want %s", a, err, alert.ReasonAddress)
		}
	}
	for _, a := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"} {
		if err := alert.CheckAddress(nil, a, false); err != nil {
			t.Errorf("%s: got %v, want it allowed", a, err)
		}
		if err := alert.CheckAddress(nil, a, true); fault.ReasonOf(err) != alert.ReasonURL {
			t.Errorf("%s by http: got %v, want %s", a, err, alert.ReasonURL)
		}
	}
	loopback, err := alert.Networks("127.0.0.0/8, ::1")
	if err != nil {
		t.Fatal(err)
	}
	for a, ok := range map[string]bool{"127.0.0.1": true, "::ffff:127.9.9.9": true, "::1": true, "10.0.0.1": false, "169.254.169.254": false} {
		if err := alert.CheckAddress(loopback, a, true); (err == nil) != ok {
			t.Errorf("with loopback opened, %s: got %v, want allowed %v", a, err, ok)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://hooks.example.com/usage?token=1":  "",
		"https://hooks.example.com:8443/":          "",
		"https://[2606:4700::1111]/":               "",
		"http://hooks.example.com/":                alert.ReasonURL,
		"http://1.1.1.1/":                          alert.ReasonURL,
		"https://127.0.0.1/":                       alert.ReasonAddress,
		"https://[::1]:8080/":                      alert.ReasonAddress,
		"https://[::ffff:127.0.0.1]/":              alert.ReasonAddress,
		"https://[fe80::1%25eth0]/":                alert.ReasonAddress,
		"https://localhost/":                       alert.ReasonAddress,
		"https://LOCALHOST./":                      alert.ReasonAddress,
		"https://foo.localhost/":                   alert.ReasonAddress,
		"http://169.254.169.254/latest/meta-data/": alert.ReasonAddress,
		"https://metadata.google.internal/":        alert.ReasonAddress,
		"https://2130706433/":                      alert.ReasonURL,
		"https://0x7f000001/":                      alert.ReasonURL,
		"https://127.1/":                           alert.ReasonURL,
		"https://0177.0.0.1/":                      alert.ReasonURL,
		"https://u:p@hooks.example.com/":           alert.ReasonURL,
		"https://hooks.example.com/#f":             alert.ReasonURL,
		"https:hooks.example.com":                  alert.ReasonURL,
		"ftp://hooks.example.com/":                 alert.ReasonURL,
		"file:///etc/passwd":                       alert.ReasonURL,
		"gopher://127.0.0.1/":                      alert.ReasonURL,
		"":                                         alert.ReasonURL,
		"https://\x00/":                            alert.ReasonURL,
	} {
		if err := alert.CheckURL(nil, url); fault.ReasonOf(err) != want {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for url, ok := range map[string]bool{"http://127.0.0.1:9000/": true, "http://localhost:9000/": true, "http://169.254.169.254/": false, "https://10.0.0.1/": false} {
		if err := alert.CheckURL(loopback, url); (err == nil) != ok {
			t.Errorf("with loopback opened, %q: got %v, want allowed %v", url, err, ok)
		}
	}
}

func TestNetworks_RefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"localhost", "10.0.0.0/33", "all"} {
		if _, err := alert.Networks(text); err == nil {
			t.Errorf("%q is read as a network", text)
		}
	}
	if got, err := alert.Networks(""); err != nil || len(got) != 0 {
		t.Errorf("nothing: got %v, %v", got, err)
	}
}
