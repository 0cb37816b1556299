package proxy

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// ServersConfig of NewServers. Handler, TLS and Logger are required.
type ServersConfig struct {
	Handler http.Handler
	TLS     *tls.Config // one policy for TCP and QUIC: certificates, versions, tickets
	Logger  *slog.Logger

	MaxHeaderBytes int // 0: 64 KiB; beyond it 431
}

// Servers are the three doors of an edge: one handler, so one decision.
type Servers struct {
	HTTPS *http.Server // HTTP/1.1 and HTTP/2: ServeTLS(l, "", "")
	HTTP  *http.Server // cleartext HTTP/1.1: Serve(l)
	H3    *http3.Server
}

// NewServers makes the doors, none of them open yet. There is no read or write timeout: an upload or a
// stream may take long, and the request path has its own limits. 0-RTT is off everywhere, since a replayed
// request would be counted and acted on twice.
func NewServers(cfg ServersConfig) Servers {
	if cfg.MaxHeaderBytes <= 0 {
		cfg.MaxHeaderBytes = 64 << 10
	}
	errorLog := slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)
	server := func() *http.Server {
		return &http.Server{
			Handler: cfg.Handler, MaxHeaderBytes: cfg.MaxHeaderBytes, ErrorLog: errorLog,
			ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second,
			HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 30 * time.Second},
		}
	}
	s := Servers{HTTPS: server(), HTTP: server()}
	tcp := cfg.TLS.Clone()
	tcp.NextProtos = append([]string{"h2", "http/1.1"}, tcp.NextProtos...) // whatever an ACME solver added stays
	s.HTTPS.TLSConfig = tcp
	var both, one http.Protocols
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	one.SetHTTP1(true)
	s.HTTPS.Protocols, s.HTTP.Protocols = &both, &one
	udp := cfg.TLS.Clone()
	udp.MinVersion = tls.VersionTLS13
	s.H3 = &http3.Server{
		Handler: cfg.Handler, TLSConfig: http3.ConfigureTLSConfig(udp), MaxHeaderBytes: cfg.MaxHeaderBytes, IdleTimeout: 90 * time.Second,
		QUICConfig: &quic.Config{Allow0RTT: false, MaxIdleTimeout: 90 * time.Second, MaxIncomingStreams: 250, HandshakeIdleTimeout: 10 * time.Second},
		Logger:     cfg.Logger,
	}
	return s
}
