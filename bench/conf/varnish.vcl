vcl 4.1;

backend origin {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
    .connect_timeout = 10s;
    .first_byte_timeout = 30s;
    .max_connections = 1000;
}

sub vcl_recv {
    if (req.url != "/hit") {
        return (pass);
    }
}
