//go:build keepdeps

// Package bailiwick keeps modules in go.mod while the tree grows.
package bailiwick
import (
_ "connectrpc.com/connect"
_ "connectrpc.com/grpcreflect"
_ "buf.build/go/protovalidate"
_ "github.com/hashicorp/raft"
_ "github.com/hashicorp/go-hclog"
_ "go.etcd.io/bbolt"
_ "github.com/quic-go/quic-go"
_ "github.com/quic-go/quic-go/http3"
_ "github.com/caddyserver/certmagic"
_ "github.com/cockroachdb/pebble/v2"
_ "github.com/spf13/cobra"
_ "go.yaml.in/yaml/v3"
_ "google.golang.org/protobuf/proto"
_ "google.golang.org/protobuf/encoding/protojson"
_ "github.com/prometheus/client_golang/prometheus/promhttp"
_ "pgregory.net/rapid"
_ "go.uber.org/goleak"
_ "github.com/klauspost/compress/zstd"
_ "go.uber.org/zap"
_ "golang.org/x/sys/unix"
_ "github.com/anishathalye/porcupine"
_ "github.com/hashicorp/go-immutable-radix"
_ "golang.org/x/net/http2"
_ "golang.org/x/crypto/hkdf"
_ "golang.org/x/sync/errgroup"
_ "github.com/bufbuild/protocompile"
_ "google.golang.org/genproto/googleapis/rpc/errdetails"
_ "github.com/letsencrypt/pebble/v2/ca"
)
